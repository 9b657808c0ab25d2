// Pictures and masks: bytes to arrays at the size of a session, and back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "contract/tensor.hpp"

namespace ebca {

// Pixels that the caller owns: [height,width,channels] uint8 without gaps, 1 (grey), 3 (RGB) or 4 channels (alpha is
// left out).
struct Picture {
    const uint8_t* pixels = nullptr;
    int64_t height = 0;
    int64_t width = 0;
    int64_t channels = 3;
};

// Pictures to [n,height,width,3] in [0, 1]; other sizes are resized (bicubic, to the byte as Pillow 13 does it).
// ParameterError for what is no picture.
Array load_pictures(const std::vector<Picture>& pictures, int64_t height, int64_t width);

// Masks to [n,1,height,width] of 0 and 1, white (1/2 and brighter) the hole. ParameterError also for one without a
// hole.
Array load_masks(const std::vector<Picture>& masks, int64_t height, int64_t width);

// [n,1,H,W] to [n,1,h,w]: the top left pixel of each block, as the authors do.
Array latent_mask(const Array& masks, int64_t downscale);

// [n,3,H,W] in [-1, 1] to [n,H,W,3] in [0, 1].
Array to_unit_range(const Array& decoded);

// Values in [0, 1] to bytes.
std::vector<uint8_t> to_bytes(const Array& images);

}  // namespace ebca
