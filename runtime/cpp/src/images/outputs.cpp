#include "images/outputs.hpp"

#include <algorithm>
#include <cmath>

namespace ebca::internal {

Array to_unit_range(const Array& decoded) {
    int64_t height = decoded.size(2), width = decoded.size(3), plane = height * width;
    Array out({decoded.size(0), height, width, 3});
    for (int64_t n = 0; n < decoded.size(0); ++n) {
        for (int64_t i = 0; i < plane; ++i) {
            for (int64_t c = 0; c < 3; ++c) {
                float value = decoded.row(n)[c * plane + i] * 0.5f + 0.5f;
                // In this form NaN stays NaN.
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

}  // namespace ebca::internal
