#include "images/inputs.hpp"

#include <algorithm>
#include <string>

#include "images/resize.hpp"
#include "parameters.hpp"

namespace ebca {
namespace {

constexpr int64_t kLargestSide = 1 << 16;

Pixels rgb(const ImageView& image, const std::string& name) {
    bool fits = image.pixels && image.height > 0 && image.width > 0 && image.height <= kLargestSide &&
                image.width <= kLargestSide && (image.channels == 1 || image.channels == 3 || image.channels == 4);
    if (!fits) {
        throw rules::image_layout(name, image.height, image.width, image.channels, image.pixels ? "" : " and no data");
    }
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

}  // namespace

Array load_images(const std::vector<ImageView>& images, int64_t height, int64_t width) {
    Array out({static_cast<int64_t>(images.size()), height, width, 3});
    for (size_t n = 0; n < images.size(); ++n) {
        Pixels pixels = resized(rgb(images[n], text("images[", n, "]")), height, width);
        std::transform(pixels.values.begin(), pixels.values.end(), out.row(static_cast<int64_t>(n)),
                       [](uint8_t value) { return static_cast<float>(value) / 255.0f; });
    }
    return out;
}

Array load_masks(const std::vector<ImageView>& masks, int64_t height, int64_t width) {
    Array out({static_cast<int64_t>(masks.size()), 1, height, width});
    for (size_t n = 0; n < masks.size(); ++n) {
        Pixels pixels = resized(rgb(masks[n], text("masks[", n, "]")), height, width);
        float* row = out.row(static_cast<int64_t>(n));
        bool any = false;
        for (int64_t i = 0; i < height * width; ++i) {
            const uint8_t* p = pixels.values.data() + 3 * i;
            // ITU-R 601-2 luma in fixed point, as in Pillow.
            int grey = (p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16;
            row[i] = grey >= 128 ? 1.0f : 0.0f;
            any = any || grey >= 128;
        }
        if (!any) {
            throw rules::mask_empty(masks.size() > 1 ? text("masks[", n, "]") : "the mask");
        }
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

}  // namespace ebca
