// Decoded arrays to the bytes of images.
#pragma once

#include <cstdint>
#include <vector>

#include "contract/tensor.hpp"

namespace ebca::internal {

// [n,3,H,W] in [-1, 1] to [n,H,W,3] in [0, 1].
Array to_unit_range(const Array& decoded);

// Values in [0, 1] to bytes.
std::vector<uint8_t> to_bytes(const Array& images);

}  // namespace ebca::internal
