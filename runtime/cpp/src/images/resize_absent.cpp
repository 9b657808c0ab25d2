// In place of resize.cpp in a library that is built without it.
#include "images/resize.hpp"
#include "parameters.hpp"

namespace ebca::internal {

Pixels resized(Pixels pixels, int64_t height, int64_t width) {
    if (pixels.height != height || pixels.width != width) {
        throw rules::no_resizing(pixels.width, pixels.height, width, height);
    }
    return pixels;
}

}  // namespace ebca::internal
