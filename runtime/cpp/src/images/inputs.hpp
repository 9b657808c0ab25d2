// Images and masks that a caller passes in, as arrays at the size of a session.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "contract/tensor.hpp"

namespace ebca::internal {

// Pixels that the caller owns: [height,width,channels] uint8 without gaps, 1 (grey), 3 (RGB) or 4 channels (alpha
// last).
struct ImageView {
    const uint8_t* pixels = nullptr;
    int64_t height = 0;
    int64_t width = 0;
    int64_t channels = 3;
};

// Called with the text of a warning.
using Warn = std::function<void(const std::string&)>;

// Images to [n,height,width,3] in [0, 1]; other sizes are resized. Transparent pixels are composited on white, with a
// warning. ParameterError for a layout that is not an image.
Array load_images(const std::vector<ImageView>& images, int64_t height, int64_t width, const Warn& warn);

// One mask to [height,width], as in `load_masks`, possibly without a hole. name: for messages.
Array load_mask(const ImageView& mask, const std::string& name, int64_t height, int64_t width, const Warn& warn);

// Masks to [n,1,height,width] of 0 and 1; white (1/2 and brighter) is the hole. If a mask has only one colour and its
// alpha varies, the hole is where it is transparent (alpha below 1/2). If all its pixels are 0 or 1, the hole is 1: no
// pixel would be white. ParameterError also for a mask without a hole.
Array load_masks(const std::vector<ImageView>& masks, int64_t height, int64_t width, const Warn& warn);

// [n,1,H,W] to [n,1,h,w]: the top left pixel of each block, as in the authors' code.
Array latent_mask(const Array& masks, int64_t downscale);

}  // namespace ebca::internal
