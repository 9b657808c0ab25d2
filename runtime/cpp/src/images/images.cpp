#include "images/images.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "parameters.hpp"

namespace ebca {
namespace {

constexpr int64_t kLargestSide = 1 << 16;

// Pillow computes in fixed point: 8 bits of result, 2 for values beyond the range.
constexpr int kPrecisionBits = 32 - 8 - 2;
constexpr double kBicubicSupport = 2.0;

struct Pixels {
    int64_t height, width;
    std::vector<uint8_t> values;  // [height,width,3]
};

double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

// What one target pixel is made of: weights of the source pixels from `first` on.
struct Window {
    int64_t first;
    std::vector<int32_t> weights;
};

std::vector<Window> windows(int64_t source, int64_t target) {
    double scale = static_cast<double>(source) / static_cast<double>(target), filter = std::max(scale, 1.0);
    double support = kBicubicSupport * filter, shrink = 1.0 / filter;
    std::vector<Window> out;
    for (int64_t i = 0; i < target; ++i) {
        double center = (static_cast<double>(i) + 0.5) * scale, sum = 0;
        int64_t first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
        int64_t last = std::min(static_cast<int64_t>(center + support + 0.5), source);
        std::vector<double> exact;
        for (int64_t x = 0; x < last - first; ++x) {
            exact.push_back(bicubic((static_cast<double>(x + first) - center + 0.5) * shrink));
            sum += exact.back();
        }
        Window window{first, {}};
        for (double weight : exact) {
            if (sum != 0.0) weight /= sum;
            double fixed = weight * (1 << kPrecisionBits);
            window.weights.push_back(static_cast<int32_t>(weight < 0 ? fixed - 0.5 : fixed + 0.5));
        }
        out.push_back(std::move(window));
    }
    return out;
}

uint8_t clipped(int32_t sum) {
    return static_cast<uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

// Along one axis.
Pixels resampled(const Pixels& from, int64_t target, bool horizontally) {
    Pixels to{horizontally ? from.height : target, horizontally ? target : from.width, {}};
    to.values.resize(static_cast<size_t>(to.height * to.width * 3));
    std::vector<Window> made = windows(horizontally ? from.width : from.height, target);
    for (int64_t y = 0; y < to.height; ++y) {
        for (int64_t x = 0; x < to.width; ++x) {
            const Window& window = made[horizontally ? x : y];
            const uint8_t* first =
                from.values.data() + 3 * (horizontally ? y * from.width + window.first : window.first * from.width + x);
            int64_t stride = 3 * (horizontally ? 1 : from.width);
            for (int64_t c = 0; c < 3; ++c) {
                int32_t sum = 1 << (kPrecisionBits - 1);
                for (size_t k = 0; k < window.weights.size(); ++k) {
                    sum += first[static_cast<int64_t>(k) * stride + c] * window.weights[k];
                }
                to.values[3 * (y * to.width + x) + c] = clipped(sum);
            }
        }
    }
    return to;
}

Pixels rgb(const Picture& picture, const char* name) {
    bool fits = picture.pixels && picture.height > 0 && picture.width > 0 && picture.height <= kLargestSide &&
                picture.width <= kLargestSide &&
                (picture.channels == 1 || picture.channels == 3 || picture.channels == 4);
    if (!fits) {
        throw rules::image_layout(name, picture.height, picture.width, picture.channels,
                                  picture.pixels ? "" : " and no data");
    }
    Pixels out{picture.height, picture.width, {}};
    int64_t count = picture.height * picture.width;
    out.values.resize(static_cast<size_t>(count * 3));
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t c = 0; c < 3; ++c) {
            out.values[3 * i + c] = picture.pixels[i * picture.channels + (picture.channels == 1 ? 0 : c)];
        }
    }
    return out;
}

Pixels resized(const Picture& picture, int64_t height, int64_t width, const char* name) {
    Pixels pixels = rgb(picture, name);
    // The order of Pillow 13: the height first where it shrinks by much more than the width. (Older versions always
    // begin with the width, and round differently here and there.)
    int64_t shrinks = picture.height - height;
    bool height_first = shrinks > 0 && shrinks > 2 * (picture.width - width);
    for (bool horizontally : {!height_first, height_first}) {
        int64_t target = horizontally ? width : height;
        if ((horizontally ? pixels.width : pixels.height) != target) pixels = resampled(pixels, target, horizontally);
    }
    return pixels;
}

}  // namespace

Array load_pictures(const std::vector<Picture>& pictures, int64_t height, int64_t width) {
    Array out({static_cast<int64_t>(pictures.size()), height, width, 3});
    for (size_t n = 0; n < pictures.size(); ++n) {
        Pixels pixels = resized(pictures[n], height, width, "image");
        std::transform(pixels.values.begin(), pixels.values.end(), out.row(static_cast<int64_t>(n)),
                       [](uint8_t value) { return static_cast<float>(value) / 255.0f; });
    }
    return out;
}

Array load_masks(const std::vector<Picture>& masks, int64_t height, int64_t width) {
    Array out({static_cast<int64_t>(masks.size()), 1, height, width});
    for (size_t n = 0; n < masks.size(); ++n) {
        Pixels pixels = resized(masks[n], height, width, "mask");
        float* row = out.row(static_cast<int64_t>(n));
        bool any = false;
        for (int64_t i = 0; i < height * width; ++i) {
            const uint8_t* p = pixels.values.data() + 3 * i;
            // ITU-R 601-2 luma in fixed point, as Pillow has it.
            int grey = (p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16;
            row[i] = grey >= 128 ? 1.0f : 0.0f;
            any = any || grey >= 128;
        }
        if (!any) {
            throw rules::mask_empty(masks.size() > 1 ? text("mask ", n) : "the mask");
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

Array to_unit_range(const Array& decoded) {
    int64_t height = decoded.size(2), width = decoded.size(3), plane = height * width;
    Array out({decoded.size(0), height, width, 3});
    for (int64_t n = 0; n < decoded.size(0); ++n) {
        for (int64_t i = 0; i < plane; ++i) {
            for (int64_t c = 0; c < 3; ++c) {
                float value = decoded.row(n)[c * plane + i] * 0.5f + 0.5f;
                // Written so that a value that is no number stays one.
                out.row(n)[i * 3 + c] = value < 0.0f ? 0.0f : value > 1.0f ? 1.0f : value;
            }
        }
    }
    return out;
}

std::vector<uint8_t> to_bytes(const Array& images) {
    std::vector<uint8_t> out(images.values.size());
    std::transform(images.values.begin(), images.values.end(), out.begin(),
                   [](float value) { return static_cast<uint8_t>(std::rint(value * 255.0f)); });
    return out;
}

}  // namespace ebca
