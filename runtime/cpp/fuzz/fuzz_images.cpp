// Images and masks of untrusted layouts and pixels: only this library's errors may be thrown, nothing may be read
// beyond the pixels that a layout has, and every result is within its range. run.sh builds it.
//
// An input is a header of eight bytes, and pixels, which are repeated as often as a layout needs them. The header: what
// is read (image, masks, region); height and width of the pixels, and their channels; height and width of the session;
// height and width of a region's grid. Sides from 250 on stand for ones that no image has.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "error.hpp"
#include "images/inputs.hpp"
#include "images/regions.hpp"

using namespace ebca::internal;

namespace {

constexpr size_t kHeader = 8;
constexpr int64_t kSides[] = {0, -1, (1 << 16) + 1, INT32_MAX, INT32_MIN, 1 << 30};

int64_t side(uint8_t byte) {
    return byte < 250 ? byte : kSides[byte - 250];
}

int64_t below(uint8_t byte, int64_t most) {
    return 1 + byte % most;
}

void expect(const Array& array, const Shape& shape) {
    if (array.shape != shape) __builtin_trap();
    for (float value : array.values) {
        if (!(value >= 0 && value <= 1)) __builtin_trap();
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < kHeader) return 0;
    ImageView image;
    image.height = side(data[1]);
    image.width = side(data[2]);
    image.channels = data[3] % 7;
    bool possible = data[1] < 250 && data[2] < 250;
    // Of a layout that is refused nothing may be read.
    std::vector<uint8_t> pixels(possible ? static_cast<size_t>(image.height * image.width * image.channels) : 0);
    for (size_t i = 0; size > kHeader && i < pixels.size(); ++i) pixels[i] = data[kHeader + i % (size - kHeader)];
    static const uint8_t none = 0;
    image.pixels = possible ? pixels.data() : &none;
    int64_t height = 8 * below(data[4], 16), width = 8 * below(data[5], 16);
    int64_t rows = below(data[6], 16), columns = below(data[7], 16);
    auto ignore = [](const std::string&) {};
    try {
        if (data[0] % 3 == 0) {
            expect(load_images({image, image}, height, width, ignore), {2, height, width, 3});
        } else if (data[0] % 3 == 1) {
            Array masks = load_masks({image}, height, width, ignore);
            expect(masks, {1, 1, height, width});
            expect(latent_mask(masks, 8), {1, 1, height / 8, width / 8});
        } else {
            expect(coverage("a cat", image, "mask", {height, width}, {rows, columns}, ignore), {rows, columns});
        }
    } catch (const Error&) {
    }
    return 0;
}
