// Resizing, to the byte as Pillow 13 does it: bicubic, in fixed point. A library built without it refuses other sizes.
#pragma once

#include <cstdint>
#include <vector>

namespace ebca::internal {

struct Pixels {
    int64_t height, width;
    std::vector<uint8_t> values;  // [height,width,3]
};

// UnsupportedError for another size in a library that is built without resizing.
Pixels resized(Pixels pixels, int64_t height, int64_t width);

}  // namespace ebca::internal
