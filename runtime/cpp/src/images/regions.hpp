// Regions of an image, given as masks, on the grid of a coarse map.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "contract/tensor.hpp"
#include "images/inputs.hpp"

namespace ebca::internal {

// Height and width.
using Size = std::array<int64_t, 2>;

// The share of each cell of a grid that a region covers, [h,w]. subject: what belongs there, and name: of the mask, for
// messages; size: of the image in pixels, at which the mask is read. ParameterError for a mask that is no image, has
// another aspect ratio than the image, or no white pixel.
Array coverage(const std::string& subject, const ImageView& mask, const std::string& name, const Size& size,
               const Size& grid, const Warn& warn);

}  // namespace ebca::internal
