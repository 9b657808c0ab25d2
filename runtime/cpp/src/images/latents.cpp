#include "images/latents.hpp"

#include <algorithm>
#include <utility>

#include "parameters.hpp"

namespace ebca::internal {
namespace {

// [n][3]: mean colour of the pixels outside the mask; grey if there are none.
std::vector<float> mean_outside(const Array& pixels, const Array& mask) {
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

// The pixels with their hole filled: grey, or the mean of the rest.
Array filled(const Source& source, Task task) {
    Array out = source.pixels;
    // The grey that inpainting models were trained with would tint what RePaint keeps, because a VAE normalises over
    // the entire image.
    std::vector<float> mean =
        task == Task::inpainting ? std::vector<float>() : mean_outside(source.pixels, *source.mask);
    for (int64_t n = 0; n < out.size(0); ++n) {
        const float* hole = source.mask->row(source.mask->size(0) == 1 ? 0 : n);
        for (int64_t i = 0; i < out.stride(); ++i) {
            if (hole[i / 3] > 0) out.row(n)[i] = mean.empty() ? 0.5f : mean[static_cast<size_t>(n * 3 + i % 3)];
        }
    }
    return out;
}

}  // namespace

Array sampled_latents(Engine& engine, const Array& pixels, std::vector<NormalStream>& streams, bool tiled,
                      Cancellation* cancellation) {
    auto [mean, std] = engine.encode_image(pixels, tiled, cancellation);
    Array noise = draw(streams, mean.shape);
    for (size_t i = 0; i < mean.values.size(); ++i) mean.values[i] += std.values[i] * noise.values[i];
    return std::move(mean);
}

std::optional<Source> load_source(const Engine& engine, int64_t batch, int64_t height, int64_t width, int64_t downscale,
                                  const std::vector<ImageView>& images, const std::vector<ImageView>& masks_given) {
    if (images.empty()) return std::nullopt;
    Warn warn = [&](const std::string& text) { engine.log(LogLevel::warning, text); };
    Source source{per_image("images", load_images(images, height, width, warn), batch), std::nullopt, std::nullopt};
    if (masks_given.empty()) return source;
    Array masks = load_masks(masks_given, height, width, warn);
    if (images[0].height != masks_given[0].height || images[0].width != masks_given[0].width) {
        engine.log(LogLevel::warning, rules::mask_stretched(masks_given[0].width, masks_given[0].height,
                                                            images[0].width, images[0].height));
    }
    if (masks.size(0) > 1) masks = per_image("masks", masks, batch);
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

SamplerInputs prepare(Engine& engine, Task task, const std::optional<Source>& source,
                      std::vector<NormalStream>& streams, const Shape& shape, const std::optional<Array>& latents,
                      const SchedulerTable* table, bool tiled, Cancellation* cancellation) {
    auto noise = [&] { return latents ? *latents : draw(streams, shape); };
    if (!source) return {noise(), std::nullopt, std::nullopt};
    if (task == Task::image_to_image) {
        Array clean = sampled_latents(engine, source->pixels, streams, tiled, cancellation);
        Array start = noise();
        return {table->add_noise(clean, start, load_alphas_cumprod(engine.directory())), std::nullopt, std::nullopt};
    }
    SamplerInputs inputs{noise(), std::nullopt, std::nullopt};
    Array clean = sampled_latents(engine, filled(*source, task), streams, tiled, cancellation);
    if (task == Task::repaint) {
        inputs.clean = std::move(clean);
        return inputs;
    }
    int64_t plane = shape[2] * shape[3];
    Array channels({shape[0], shape[1] + 1, shape[2], shape[3]});
    for (int64_t n = 0; n < shape[0]; ++n) {
        std::copy_n(source->hole->row(source->hole->size(0) == 1 ? 0 : n), plane, channels.row(n));
        std::copy_n(clean.row(n), clean.stride(), channels.row(n) + plane);
    }
    inputs.extra_channels = std::move(channels);
    return inputs;
}

std::optional<Array> update_mask(const std::optional<Source>& source, Task task, const RePaint& repaint) {
    if (!source || !source->hole) return std::nullopt;
    Array mask = *source->hole;
    if (task == Task::repaint && repaint.update_known) {
        for (float& value : mask.values) value = 1 - value;
    }
    return mask;
}

Array per_image(const char* items, const Array& values, int64_t batch) {
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

}  // namespace ebca::internal
