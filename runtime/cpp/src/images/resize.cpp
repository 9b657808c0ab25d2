#include "images/resize.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace ebca::internal {
namespace {

// Pillow computes in fixed point: 8 bits of result, 2 for values beyond the range.
constexpr int kPrecisionBits = 32 - 8 - 2;
constexpr double kBicubicSupport = 2.0;

double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

// Weights of the source pixels, from `first` on, that one target pixel is the sum of.
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

}  // namespace

Pixels resized(Pixels pixels, int64_t height, int64_t width) {
    // The order of Pillow 13: the height first if it shrinks by much more than the width. (Older versions always begin
    // with the width, and round some values differently.)
    int64_t shrinks = pixels.height - height;
    bool height_first = shrinks > 0 && shrinks > 2 * (pixels.width - width);
    for (bool horizontally : {!height_first, height_first}) {
        int64_t target = horizontally ? width : height;
        if ((horizontally ? pixels.width : pixels.height) != target) pixels = resampled(pixels, target, horizontally);
    }
    return pixels;
}

}  // namespace ebca::internal
