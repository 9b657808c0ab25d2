// What the UNet of Stable Diffusion XL takes beside contexts: pooled embeddings and sizes.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "conditioning/prompts.hpp"
#include "contract/manifest.hpp"
#include "contract/tensor.hpp"

namespace ebca::internal {

// Sizes (height, width) in pixels, and where a crop began (top, left). None: the size of the images.
struct SizeConditions {
    using Pair = std::array<int64_t, 2>;

    std::optional<Pair> original;
    Pair crop{0, 0};
    std::optional<Pair> target;

    bool given() const { return original || target || crop != Pair{0, 0}; }
};

// ParameterError for second prompts, pooled embeddings and sizes that do not go together, that are out of range, or
// that the UNet does not take; for embeddings without pooled ones where it does. negative: of the unconditional half.
void check_added_inputs(const Conditioning& conditioning, const SizeConditions& sizes, const SizeConditions& negative,
                        const UNetSpec& unet);

// The numbers of `size_conditions` for every row [B,6], the unconditional rows first; empty for a UNet that takes none.
// image: (height, width) in pixels. negative: of the unconditional rows, which have those of the others without.
Array time_ids(const UNetSpec& unet, int64_t batch, bool guided, const SizeConditions& sizes,
               const SizeConditions& negative, const SizeConditions::Pair& image);

}  // namespace ebca::internal
