#include "images/preview.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "execution/control.hpp"
#include "images/outputs.hpp"
#include "sampling/noise.hpp"

namespace ebca::internal {
namespace {

// The same numbers as in preview.py.
constexpr int64_t kImages = 5, kSide = 12, kCoarsest = 2;
constexpr double kRidge = 0.01;

// Random values on grids of a few sizes, with soft transitions.
Array smooth_latents(int64_t channels) {
    NormalStream stream(0);
    Array out({kImages, channels, kSide, kSide});
    for (int64_t n = 0; n < kImages; ++n) {
        int64_t side = kCoarsest + n;
        Array grid({channels, 1, side, side});
        stream.randn(grid.values.data(), static_cast<int64_t>(grid.values.size()));
        Array wide = resize_mask(grid, kSide, kSide);
        std::copy(wide.values.begin(), wide.values.end(), out.row(n));
    }
    return out;
}

using Matrix = std::vector<std::vector<double>>;

// x of a x = b, for a symmetric and positive definite; overwrites both.
Matrix solved(Matrix a, Matrix b) {
    size_t size = a.size();
    for (size_t i = 0; i < size; ++i) {
        for (size_t row = i + 1; row < size; ++row) {
            double factor = a[row][i] / a[i][i];
            for (size_t k = i; k < size; ++k) a[row][k] -= factor * a[i][k];
            for (size_t k = 0; k < b[row].size(); ++k) b[row][k] -= factor * b[i][k];
        }
    }
    for (size_t i = size; i-- > 0;) {
        for (size_t k = 0; k < b[i].size(); ++k) {
            for (size_t j = i + 1; j < size; ++j) b[i][k] -= a[i][j] * b[j][k];
            b[i][k] /= a[i][i];
        }
    }
    return b;
}

// Mean colours [n,h,w,3] of the blocks of pixels [n,H,W,3].
Array mean_colours(const Array& pixels, int64_t downscale) {
    int64_t height = pixels.size(1) / downscale, width = pixels.size(2) / downscale;
    Array out({pixels.size(0), height, width, 3});
    for (int64_t i = 0; i < static_cast<int64_t>(out.values.size()); ++i) {
        int64_t c = i % 3, x = i / 3 % width, y = i / 3 / width % height, n = i / out.stride();
        double sum = 0;
        for (int64_t row = y * downscale; row < (y + 1) * downscale; ++row) {
            for (int64_t column = x * downscale; column < (x + 1) * downscale; ++column) {
                sum += static_cast<double>(pixels.row(n)[(row * pixels.size(2) + column) * 3 + c]);
            }
        }
        out.values[static_cast<size_t>(i)] = static_cast<float>(sum / static_cast<double>(downscale * downscale));
    }
    return out;
}

}  // namespace

Preview::Preview(int64_t channels, int64_t downscale, const std::function<Array(const Array&)>& decode)
    : factors_({channels + 1, 3}) {
    Array latents = smooth_latents(channels), colours = mean_colours(to_unit_range(decode(latents)), downscale);
    int64_t plane = kSide * kSide, count = kImages * plane;
    auto size = static_cast<size_t>(channels);
    // Of a position: its latents, then its colours.
    auto value = [&](int64_t i, size_t k) {
        int64_t n = i / plane, at = i % plane;
        return static_cast<double>(k < size ? latents.row(n)[static_cast<int64_t>(k) * plane + at]
                                            : colours.row(n)[at * 3 + static_cast<int64_t>(k - size)]);
    };
    std::vector<double> mean(size + 3);
    for (int64_t i = 0; i < count; ++i) {
        for (size_t k = 0; k < mean.size(); ++k) mean[k] += value(i, k);
    }
    for (double& one : mean) one /= static_cast<double>(count);
    Matrix products(size, std::vector<double>(size)), targets(size, std::vector<double>(3));
    for (int64_t i = 0; i < count; ++i) {
        for (size_t row = 0; row < size; ++row) {
            double known = value(i, row) - mean[row];
            for (size_t k = 0; k < size; ++k) products[row][k] += known * (value(i, k) - mean[k]);
            for (size_t c = 0; c < 3; ++c) targets[row][c] += known * (value(i, size + c) - mean[size + c]);
        }
    }
    for (size_t k = 0; k < size; ++k) products[k][k] += kRidge * static_cast<double>(count);
    Matrix weights = solved(std::move(products), std::move(targets));
    for (size_t c = 0; c < 3; ++c) {
        double zero = mean[size + c];
        for (size_t k = 0; k < size; ++k) {
            zero -= mean[k] * weights[k][c];
            factors_.values[k * 3 + c] = static_cast<float>(weights[k][c]);
        }
        factors_.values[size * 3 + c] = static_cast<float>(zero);
    }
}

Array Preview::colours(const Array& latents) const {
    int64_t channels = latents.size(1), plane = latents.size(2) * latents.size(3);
    Array out({latents.size(0), latents.size(2), latents.size(3), 3});
    for (int64_t n = 0; n < latents.size(0); ++n) {
        for (int64_t i = 0; i < plane * 3; ++i) {
            double sum = static_cast<double>(factors_.row(channels)[i % 3]);
            for (int64_t c = 0; c < channels; ++c) {
                sum += static_cast<double>(latents.row(n)[c * plane + i / 3]) *
                       static_cast<double>(factors_.row(c)[i % 3]);
            }
            out.row(n)[i] = std::clamp(static_cast<float>(sum), 0.0f, 1.0f);
        }
    }
    return out;
}

}  // namespace ebca::internal
