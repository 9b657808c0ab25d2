#include "request.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"

namespace ebca {
namespace {

constexpr double kDefaultStrength = 0.8;

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
        throw EngineError(text("this engine's UNet takes ", unet.in_channels, " channels and gives ", unet.out_channels,
                               "; pictures are made with models that take 4 or, for inpainting, 9"));
    }
    if (mask && !image) {
        throw ParameterError("a mask was given without an image; give the image whose masked part is to be made anew");
    }
    if (strength && !image) {
        throw ParameterError("strength was given without an image; it says how far image to image departs from one");
    }
    if (strength && mask) {
        throw ParameterError("strength and mask do not go together; inpainting makes the masked part anew");
    }
    if (image && !manifest.vae) {
        throw EngineError("this engine directory has no VAE to encode an image with; export a whole checkpoint");
    }
    if (for_inpainting && !mask) {
        throw EngineError(text("this engine's UNet takes ", unet.in_channels,
                               " channels (an inpainting model); give it an image and a mask"));
    }
    if (repaint && (!mask || for_inpainting)) {
        throw ParameterError(text("settings of RePaint were given, but ",
                                  for_inpainting ? "this model inpaints by itself" : "there is no mask",
                                  "; leave them out"));
    }
    if (mask) return for_inpainting ? Task::inpainting : Task::repaint;
    return image ? Task::image_to_image : Task::text_to_image;
}

int64_t begin(const std::optional<double>& strength, int64_t steps) {
    double share = strength.value_or(kDefaultStrength);
    if (!(share > 0 && share <= 1)) {
        throw ParameterError(
            text("strength is ", share, "; give a number above 0 (the image as it is) up to 1 (all anew)"));
    }
    int64_t run = std::min(static_cast<int64_t>(static_cast<double>(steps) * share), steps);
    if (run < 1) {
        throw ParameterError(text("strength ", share, " of ", steps, " steps leaves no step to run; raise either"));
    }
    return steps - run;
}

void require_noise_prediction(const Manifest& manifest, const char* what) {
    if (manifest.schedulers.prediction_type != "epsilon") {
        throw ParameterError(text(what, " needs a model that predicts noise; this one does not"));
    }
}

std::optional<Source> load_source(const Engine& engine, int64_t batch, int64_t height, int64_t width, int64_t downscale,
                                  const std::vector<Picture>& image, const std::vector<Picture>& mask) {
    if (image.empty()) return std::nullopt;
    Source source{per_picture("image", load_pictures(image, height, width), batch), std::nullopt, std::nullopt};
    if (mask.empty()) return source;
    Array masks = load_masks(mask, height, width);
    if (image[0].height != mask[0].height || image[0].width != mask[0].width) {
        engine.log(LogLevel::warning, text("the mask has ", mask[0].width, " x ", mask[0].height, " pixels, the image ",
                                           image[0].width, " x ", image[0].height, "; the mask is stretched to fit"));
    }
    if (masks.size(0) > 1) masks = per_picture("mask", masks, batch);
    Array hole = latent_mask(masks, downscale);
    for (int64_t n = 0; n < hole.size(0); ++n) {
        if (std::none_of(hole.row(n), hole.row(n) + hole.stride(), [](float value) { return value > 0; })) {
            throw ParameterError(
                text("the mask's hole is too small: no block of ", downscale, " pixels has its corner in it"));
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

Array per_picture(const char* name, const Array& values, int64_t batch) {
    if (values.size(0) == batch) return values;
    if (values.size(0) != 1) {
        throw ParameterError(
            text(values.size(0), " ", name, "s were given for ", batch, " pictures; give one, or one each"));
    }
    Shape shape = values.shape;
    shape[0] = batch;
    Array out(shape);
    for (int64_t n = 0; n < batch; ++n) std::copy_n(values.row(0), values.stride(), out.row(n));
    return out;
}

}  // namespace ebca
