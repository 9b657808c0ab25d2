#include "stages.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "conditioning/prompts.hpp"
#include "images/latents.hpp"
#include "images/outputs.hpp"
#include "images/preview.hpp"
#include "parameters.hpp"

namespace ebca::internal {
namespace {

const Array& finite(const Array& latents) {
    if (!all_finite(latents.values.data(), static_cast<int64_t>(latents.values.size()))) {
        throw rules::latents_not_finite();
    }
    return latents;
}

// [n,H,W,3] in [0, 1] as the images of a result.
Result result_of(const Array& images) {
    if (!all_finite(images.values.data(), static_cast<int64_t>(images.values.size()))) {
        throw rules::image_not_finite();
    }
    Result result;
    result.images = images.size(0);
    result.height = images.size(1);
    result.width = images.size(2);
    result.pixels = to_bytes(images);
    return result;
}

}  // namespace

void check_latents_shape(const Engine& engine, const Shape& shape) {
    const Manifest& manifest = engine.manifest();
    if (!manifest.vae) throw rules::no_vae_to_decode();
    const VaeSpec& vae = *manifest.vae;
    int64_t most = limits::pixels / vae.downscale / vae.downscale;
    if (shape.size() != 4 || shape[0] > limits::images || shape[2] > most / shape[3]) {
        throw rules::latents_layout(to_string(shape), vae.latent_channels, limits::images, limits::pixels);
    }
    if (shape[1] != vae.latent_channels) throw rules::latents_channels(shape[1], vae.latent_channels);
}

Result encode_prompt(Engine& engine, const Conditioning& conditioning) {
    check_clip_skip(conditioning.clip_skip, engine.manifest());
    check_added_inputs(conditioning, {}, {}, engine.manifest().unet);
    auto count = static_cast<int64_t>(conditioning.prompt.texts.size());
    if (count > limits::images) throw rules::batch_too_large(count, limits::images);
    Prompts prompts = encode_prompts(engine, count, conditioning, {}, false, nullptr);
    Result result;
    result.embeds = std::move(prompts.conditional);
    result.pooled_embeds = std::move(prompts.pooled);
    return result;
}

Result encode_images(Engine& engine, const EncodeImagesRequest& request) {
    auto count = static_cast<int64_t>(request.images.size());
    if (!count) throw rules::is_null("images");
    const ImageSize size = image_size(engine.manifest(), request.height, request.width, count);
    if (!engine.manifest().vae) throw rules::no_vae_to_encode();
    Result result;
    if (request.sample) result.seeds = checked_seeds(request.seeds, count);
    Warn warn = [&](const std::string& text) { engine.log(LogLevel::warning, text); };
    Array pixels = load_images(request.images, size.height, size.width, warn);
    std::vector<NormalStream> streams{result.seeds.begin(), result.seeds.end()};
    result.latents =
        request.sample ? sampled_latents(engine, pixels, streams) : engine.encode_image(pixels, false, nullptr).first;
    result.images = count;
    result.height = size.height;
    result.width = size.width;
    return result;
}

Result decode(Engine& engine, const Array& latents) {
    return result_of(to_unit_range(engine.decode(finite(latents), false, nullptr)));
}

Result preview(Engine& engine, const Array& latents, double scale) {
    if (!std::isfinite(scale)) throw rules::finite_number("scale", scale);
    Array scaled = finite(latents);
    for (float& value : scaled.values) value *= static_cast<float>(scale);
    return result_of(engine.preview()->colours(scaled));
}

}  // namespace ebca::internal
