#include "images/inputs.hpp"

#include <algorithm>
#include <string>

#include "images/resize.hpp"
#include "parameters.hpp"

namespace ebca::internal {
namespace {

constexpr int64_t kLargestSide = 1 << 16;
constexpr int64_t kMostPixels = int64_t{1} << 28;

void check_layout(const ImageView& image, const std::string& name) {
    bool fits = image.pixels && image.height > 0 && image.width > 0 && image.height <= kLargestSide &&
                image.width <= kLargestSide && (image.channels == 1 || image.channels == 3 || image.channels == 4);
    if (!fits) {
        throw rules::image_layout(name, image.height, image.width, image.channels, image.pixels ? "" : " and no data");
    }
    if (image.height > kMostPixels / image.width) {
        throw rules::image_too_many_pixels(name, image.height, image.width, kMostPixels);
    }
}

int alpha(const ImageView& image, int64_t i) {
    return image.channels == 4 ? image.pixels[4 * i + 3] : 255;
}

// The colours, whatever alpha is.
Pixels rgb(const ImageView& image) {
    Pixels out{image.height, image.width, {}};
    int64_t count = image.height * image.width;
    out.values.resize(static_cast<size_t>(count * 3));
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t c = 0; c < 3; ++c) {
            out.values[3 * i + c] = image.pixels[i * image.channels + (image.channels == 1 ? 0 : c)];
        }
    }
    return out;
}

// What lies under transparency is arbitrary: white shows through.
Pixels on_white(const ImageView& image, const std::string& name, const Warn& warn) {
    check_layout(image, name);
    Pixels out = rgb(image);
    bool transparent = false;
    for (int64_t i = 0; i < image.height * image.width; ++i) {
        int a = alpha(image, i);
        transparent = transparent || a < 255;
        for (int64_t c = 0; c < 3; ++c) {
            uint8_t& value = out.values[3 * i + c];
            value = static_cast<uint8_t>((value * a + 255 * (255 - a) + 127) / 255);
        }
    }
    if (transparent) warn(rules::image_transparent(name));
    return out;
}

// White in the hole, from colours or from alpha.
Pixels hole(const ImageView& mask, const std::string& name, const Warn& warn) {
    check_layout(mask, name);
    Pixels out = rgb(mask);
    bool colours = false, alphas = false;
    for (int64_t i = 0; i < mask.height * mask.width; ++i) {
        colours = colours || !std::equal(&out.values[3 * i], &out.values[3 * i] + 3, &out.values[0]);
        alphas = alphas || alpha(mask, i) != alpha(mask, 0);
    }
    if (alphas && colours) warn(rules::mask_colours_and_transparency(name));
    if (alphas && !colours) {
        for (size_t k = 0; k < out.values.size(); ++k) {
            out.values[k] = static_cast<uint8_t>(255 - alpha(mask, static_cast<int64_t>(k / 3)));
        }
    }
    if (*std::max_element(out.values.begin(), out.values.end()) == 1) {
        for (uint8_t& value : out.values) value = static_cast<uint8_t>(value * 255);
    }
    return out;
}

}  // namespace

Array load_images(const std::vector<ImageView>& images, int64_t height, int64_t width, const Warn& warn) {
    Array out({static_cast<int64_t>(images.size()), height, width, 3});
    for (size_t n = 0; n < images.size(); ++n) {
        Pixels pixels = resized(on_white(images[n], text("images[", n, "]"), warn), height, width);
        std::transform(pixels.values.begin(), pixels.values.end(), out.row(static_cast<int64_t>(n)),
                       [](uint8_t value) { return static_cast<float>(value) / 255.0f; });
    }
    return out;
}

Array load_mask(const ImageView& mask, const std::string& name, int64_t height, int64_t width, const Warn& warn) {
    Array out({height, width});
    Pixels pixels = resized(hole(mask, name, warn), height, width);
    for (int64_t i = 0; i < height * width; ++i) {
        const uint8_t* p = pixels.values.data() + 3 * i;
        // ITU-R 601-2 luma in fixed point, as in Pillow.
        int grey = (p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16;
        out.values[static_cast<size_t>(i)] = grey >= 128 ? 1.0f : 0.0f;
    }
    return out;
}

Array load_masks(const std::vector<ImageView>& masks, int64_t height, int64_t width, const Warn& warn) {
    Array out({static_cast<int64_t>(masks.size()), 1, height, width});
    for (size_t n = 0; n < masks.size(); ++n) {
        Array mask = load_mask(masks[n], text("masks[", n, "]"), height, width, warn);
        if (std::count(mask.values.begin(), mask.values.end(), 1.0f) == 0) {
            throw rules::mask_empty(masks.size() > 1 ? text("masks[", n, "]") : "the mask");
        }
        std::copy(mask.values.begin(), mask.values.end(), out.row(static_cast<int64_t>(n)));
    }
    return out;
}

Array latent_mask(const Array& masks, int64_t downscale) {
    int64_t height = masks.size(2) / downscale, width = masks.size(3) / downscale;
    Array out({masks.size(0), 1, height, width});
    for (int64_t n = 0; n < masks.size(0); ++n) {
        for (int64_t y = 0; y < height; ++y) {
            for (int64_t x = 0; x < width; ++x) {
                out.row(n)[y * width + x] = masks.row(n)[y * downscale * masks.size(3) + x * downscale];
            }
        }
    }
    return out;
}

}  // namespace ebca::internal
