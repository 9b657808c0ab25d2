#include "images/regions.hpp"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "parameters.hpp"

namespace ebca::internal {
namespace {

// The means of the pixels whose centres are nearest to each target cell, along one axis, as Pillow's box filter makes
// them of images in float32: sums in float64, rounded once.
Array averaged(const Array& from, int64_t target, bool horizontally) {
    int64_t height = horizontally ? from.size(0) : target, width = horizontally ? target : from.size(1);
    int64_t source = from.size(horizontally ? 1 : 0), stride = horizontally ? 1 : from.size(1);
    double scale = static_cast<double>(source) / static_cast<double>(target), filter = std::max(scale, 1.0);
    double support = 0.5 * filter, shrink = 1.0 / filter;
    Array to({height, width});
    for (int64_t i = 0; i < target; ++i) {
        double center = (static_cast<double>(i) + 0.5) * scale;
        int64_t first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
        int64_t last = std::min(static_cast<int64_t>(center + support + 0.5), source);
        auto is_inside = [&](int64_t at) {
            double x = (static_cast<double>(at) - center + 0.5) * shrink;
            return x > -0.5 && x <= 0.5;
        };
        int64_t count = 0;
        for (int64_t at = first; at < last; ++at) count += is_inside(at);
        double weight = 1.0 / static_cast<double>(std::max<int64_t>(count, 1));
        for (int64_t line = 0; line < (horizontally ? height : width); ++line) {
            const float* in = from.values.data() + line * (horizontally ? from.size(1) : 1);
            double sum = 0;
            for (int64_t at = first; at < last; ++at) {
                if (is_inside(at)) sum += static_cast<double>(in[at * stride]) * weight;
            }
            to.values[static_cast<size_t>(horizontally ? line * width + i : i * width + line)] =
                static_cast<float>(sum);
        }
    }
    return to;
}

}  // namespace

Array coverage(const std::string& subject, const ImageView& mask, const std::string& name, const Size& size,
               const Size& grid, const Warn& warn) {
    auto [height, width] = size;
    // Rounding of either side by one pixel is no other aspect ratio.
    if (std::abs(mask.height * width - mask.width * height) > std::max(height, width)) {
        throw rules::region_aspect(subject, mask.width, mask.height, width, height);
    }
    Array share = load_mask(mask, name, height, width, warn);
    if (std::count(share.values.begin(), share.values.end(), 1.0f) == 0) throw rules::region_empty(subject);
    // The order of Pillow 13, see `resized`.
    bool height_first = height > grid[0] && height - grid[0] > 2 * (width - grid[1]);
    for (bool horizontally : {!height_first, height_first}) {
        size_t axis = horizontally ? 1 : 0;
        if (share.size(axis) != grid[axis]) share = averaged(share, grid[axis], horizontally);
    }
    for (float& value : share.values) value = std::clamp(value, 0.0f, 1.0f);
    return share;
}

}  // namespace ebca::internal
