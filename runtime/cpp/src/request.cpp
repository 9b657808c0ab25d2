#include "request.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "parameters.hpp"

namespace ebca {
namespace {

// [n][3]: mean colour of the pixels that the mask leaves; grey where it leaves none.
std::vector<float> mean_known(const Array& pixels, const Array& mask) {
    std::vector<float> out;
    int64_t plane = pixels.size(1) * pixels.size(2);
    for (int64_t n = 0; n < pixels.size(0); ++n) {
        const float* hole = mask.row(mask.size(0) == 1 ? 0 : n);
        float count = 0, sum[3] = {0, 0, 0};
        for (int64_t i = 0; i < plane; ++i) {
            float kept = 1 - hole[i];
            count += kept;
            for (int64_t c = 0; c < 3; ++c) sum[c] += pixels.row(n)[i * 3 + c] * kept;
        }
        for (float one : sum) out.push_back(count > 0 ? one / std::max(count, 1.0f) : 0.5f);
    }
    return out;
}

// A sample of the VAE's latents [n,C,h,w], as diffusers takes one.
Array encode(Engine& engine, const Array& pixels, std::vector<NormalStream>& streams) {
    auto [mean, std] = engine.encode_image(pixels);
    Array noise = draw(streams, mean.shape);
    for (size_t i = 0; i < mean.values.size(); ++i) mean.values[i] += std.values[i] * noise.values[i];
    return std::move(mean);
}

// The pixels with their hole filled: grey, or the mean of the rest.
Array filled(const Source& source, Task task) {
    Array out = source.pixels;
    // The grey that inpainting models were trained with would tint what RePaint keeps: a VAE normalises over the whole
    // picture.
    std::vector<float> mean = task == Task::inpainting ? std::vector<float>() : mean_known(source.pixels, *source.mask);
    for (int64_t n = 0; n < out.size(0); ++n) {
        const float* hole = source.mask->row(source.mask->size(0) == 1 ? 0 : n);
        for (int64_t i = 0; i < out.stride(); ++i) {
            if (hole[i / 3] > 0) out.row(n)[i] = mean.empty() ? 0.5f : mean[static_cast<size_t>(n * 3 + i % 3)];
        }
    }
    return out;
}

}  // namespace

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

Task infer(const Manifest& manifest, bool image, bool mask, bool strength, bool repaint) {
    const UNetSpec& unet = manifest.unet;
    bool for_inpainting = unet.in_channels == 2 * unet.out_channels + 1;
    if (!for_inpainting && unet.in_channels != unet.out_channels) {
        throw rules::unet_channels(unet.in_channels, unet.out_channels);
    }
    if (mask && !image) {
        throw rules::mask_without_image();
    }
    if (strength && !image) {
        throw rules::strength_without_image();
    }
    if (strength && mask) {
        throw rules::strength_with_mask();
    }
    if (image && !manifest.vae) {
        throw rules::no_vae_to_encode();
    }
    if (for_inpainting && !mask) {
        throw rules::inpainting_model_without_mask(unet.in_channels);
    }
    if (repaint && for_inpainting) throw rules::repaint_with_inpainting_model();
    if (repaint && !mask) throw rules::repaint_without_mask();
    if (mask) return for_inpainting ? Task::inpainting : Task::repaint;
    return image ? Task::image_to_image : Task::text_to_image;
}

int64_t begin(const std::optional<double>& strength, int64_t steps) {
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

std::optional<Source> load_source(const Engine& engine, int64_t batch, int64_t height, int64_t width, int64_t downscale,
                                  const std::vector<Picture>& image, const std::vector<Picture>& mask) {
    if (image.empty()) return std::nullopt;
    Source source{per_picture("images", load_pictures(image, height, width), batch), std::nullopt, std::nullopt};
    if (mask.empty()) return source;
    Array masks = load_masks(mask, height, width);
    if (image[0].height != mask[0].height || image[0].width != mask[0].width) {
        engine.log(LogLevel::warning,
                   rules::mask_stretched(mask[0].width, mask[0].height, image[0].width, image[0].height));
    }
    if (masks.size(0) > 1) masks = per_picture("masks", masks, batch);
    Array hole = latent_mask(masks, downscale);
    for (int64_t n = 0; n < hole.size(0); ++n) {
        if (std::none_of(hole.row(n), hole.row(n) + hole.stride(), [](float value) { return value > 0; })) {
            throw rules::mask_too_small(downscale);
        }
    }
    source.mask = std::move(masks);
    source.hole = std::move(hole);
    return source;
}

Seen prepare(Engine& engine, Task task, const std::optional<Source>& source, std::vector<NormalStream>& streams,
             const Shape& shape, const std::optional<Array>& latents, const SchedulerTable* table) {
    auto noise = [&] { return latents ? *latents : draw(streams, shape); };
    if (!source) return {noise(), std::nullopt, std::nullopt};
    if (task == Task::image_to_image) {
        Array clean = encode(engine, source->pixels, streams);
        Array start = noise();
        return {table->add_noise(clean, start, load_alphas_cumprod(engine.directory())), std::nullopt, std::nullopt};
    }
    Seen seen{noise(), std::nullopt, std::nullopt};
    Array known = encode(engine, filled(*source, task), streams);
    if (task == Task::repaint) {
        seen.known = std::move(known);
        return seen;
    }
    int64_t plane = shape[2] * shape[3];
    Array channels({shape[0], shape[1] + 1, shape[2], shape[3]});
    for (int64_t n = 0; n < shape[0]; ++n) {
        std::copy_n(source->hole->row(source->hole->size(0) == 1 ? 0 : n), plane, channels.row(n));
        std::copy_n(known.row(n), known.stride(), channels.row(n) + plane);
    }
    seen.channels = std::move(channels);
    return seen;
}

std::optional<Array> update_mask(const std::optional<Source>& source, Task task, const RePaint& repaint) {
    if (!source || !source->hole) return std::nullopt;
    Array mask = *source->hole;
    if (task == Task::repaint && repaint.update_known) {
        for (float& value : mask.values) value = 1 - value;
    }
    return mask;
}

Array per_picture(const char* items, const Array& values, int64_t batch) {
    if (values.size(0) == batch) return values;
    if (values.size(0) != 1) {
        throw rules::count_per_image(values.size(0), items, batch);
    }
    Shape shape = values.shape;
    shape[0] = batch;
    Array out(shape);
    for (int64_t n = 0; n < batch; ++n) std::copy_n(values.row(0), values.stride(), out.row(n));
    return out;
}

}  // namespace ebca
