#include "request.hpp"

#include <algorithm>
#include <random>

namespace ebca::internal {
namespace {

int64_t checked_side(const char* name, int64_t given, int64_t native, int64_t downscale) {
    int64_t side = given ? given : native;
    if (side < downscale || side % downscale) {
        int64_t low = std::max<int64_t>(side / downscale, 1) * downscale;
        throw rules::side_not_multiple(name, side, downscale, low, low + downscale);
    }
    return side;
}

}  // namespace

int64_t downscale(const Manifest& manifest) {
    return manifest.vae ? manifest.vae->downscale : defaults::downscale;
}

ImageSize image_size(const Manifest& manifest, int64_t height, int64_t width, int64_t batch) {
    int64_t latent = downscale(manifest), native = manifest.unet.sample_size * latent;
    ImageSize size{checked_side("height", height, native, latent), checked_side("width", width, native, latent)};
    if (size.height > limits::pixels / size.width) {
        throw rules::image_too_large(size.height, size.width, limits::pixels);
    }
    if (batch < 1) throw rules::batch(batch);
    if (batch > limits::images) throw rules::batch_too_large(batch, limits::images);
    return size;
}

std::vector<int64_t> checked_seeds(const std::vector<int64_t>& seeds, int64_t batch) {
    if (seeds.empty()) return {static_cast<int64_t>(std::random_device{}())};
    if (seeds.size() != 1 && static_cast<int64_t>(seeds.size()) != batch) {
        throw rules::seed_count(seeds.size(), batch);
    }
    return seeds;
}

const char* to_string(Task task) {
    switch (task) {
        case Task::image_to_image:
            return "image-to-image";
        case Task::inpainting:
            return "inpainting";
        case Task::repaint:
            return "repaint";
        default:
            return "text-to-image";
    }
}

Task resolve_task(const Manifest& manifest, const GenerateRequest& request) {
    bool image = !request.images.empty(), mask = !request.masks.empty();
    const UNetSpec& unet = manifest.unet;
    bool for_inpainting = unet.in_channels == 2 * unet.out_channels + 1;
    if (!for_inpainting && unet.in_channels != unet.out_channels) {
        throw rules::unet_channels(unet.in_channels, unet.out_channels);
    }
    if (mask && !image) {
        throw rules::mask_without_image();
    }
    if (request.strength && !image) {
        throw rules::strength_without_image();
    }
    if (request.strength && mask) {
        throw rules::strength_with_mask();
    }
    if (image && !manifest.vae) {
        throw rules::no_vae_to_encode();
    }
    if (for_inpainting && !mask) {
        throw rules::inpainting_model_without_mask(unet.in_channels);
    }
    if (request.repaint && for_inpainting) throw rules::repaint_with_inpainting_model();
    if (request.repaint && !mask) throw rules::repaint_without_mask();
    if (mask) return for_inpainting ? Task::inpainting : Task::repaint;
    return image ? Task::image_to_image : Task::text_to_image;
}

void check_clip_skip(int64_t clip_skip, const Manifest& manifest) {
    if (!clip_skip || !manifest.text_encoder) return;
    const TextEncoderSpec& encoder = *manifest.text_encoder;
    if (!encoder.layers || encoder.layers_component.empty()) throw rules::clip_skip_engine();
    if (clip_skip < 0 || clip_skip >= encoder.layers) {
        throw rules::clip_skip_range(clip_skip, encoder.layers, encoder.layers - 1);
    }
}

int64_t skipped_steps(const std::optional<double>& strength, int64_t steps) {
    double share = strength.value_or(defaults::strength);
    if (!(share > 0 && share <= 1)) {
        throw rules::strength_range(share);
    }
    int64_t run = std::min(static_cast<int64_t>(static_cast<double>(steps) * share), steps);
    if (run < 1) {
        throw rules::strength_leaves_no_step(share, steps);
    }
    return steps - run;
}

void require_noise_prediction(const Manifest& manifest, const char* what) {
    if (manifest.schedulers.prediction_type != "epsilon") {
        throw rules::noise_prediction(what);
    }
}

}  // namespace ebca::internal
