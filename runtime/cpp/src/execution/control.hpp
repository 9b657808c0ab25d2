// The knobs of one UNet evaluation (letters as in plugins/energy_attention/README.md), as the op's inputs.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "contract/manifest.hpp"
#include "contract/tensor.hpp"
#include "contract/variant.hpp"

namespace ebca::internal {

// One mask [B,S,N] per size (height, width) of a layer's positions.
using LayerMasks = std::map<std::pair<int64_t, int64_t>, Array>;

// B rows, S contexts, T tokens.
struct Control {
    Array gamma_attn;  // [B,S,T]
    Array gamma_norm;  // [B,S]
    Array weights;     // [B,S]
    Array tie;         // [B,S,S]
    float norm_factor = 1;
    std::shared_ptr<const LayerMasks> masks;  // null: no mask

    // The cheapest form of the op that computes this.
    Variant variant() const;
};

// How the layers of one evaluation update the contexts; what is not given is 0, or 1 for the weights.
struct EnergyControl {
    std::optional<Array> gamma_attn;  // broadcasts to [B,S,T]
    std::optional<Array> gamma_norm;  // broadcasts to [B,S]
    std::optional<Array> weights;     // broadcasts to [B,S]
    std::optional<Array> mask;        // [B or 1,1,h,w], applies to the main context
    bool tie_unconditional = true;
    int64_t rows_per_image = 2;
    double norm_factor = 1;
};

// The op's inputs. sizes: batch, contexts, tokens, height, width (latent). ParameterError for a shape that does not
// fit, a value that is not finite, or weights that sum to about zero.
Control resolve(const EnergyControl& control, const std::vector<LayerSpec>& layers, const Sizes& sizes);

// ParameterError for composition weights that are not finite, or whose sum, the divisor, is about 0.
void check_weights(const std::vector<double>& row, size_t index);

// The `tie` input [rows, contexts, contexts]: in the first `tied_rows` rows the editorial contexts are one vector, so
// each receives the mean of their updates; the others get the identity.
Array tie_matrix(int64_t rows, int64_t contexts, int64_t tied_rows);

// A mask [rows or 1,1,h,w] at latent size to the masks of the layers; contexts other than the main one get ones.
LayerMasks layer_masks(const Array& mask, const std::vector<LayerSpec>& layers, const Sizes& sizes);

// [n,1,h,w] to [n,height,width] as the authors resize a mask for a layer: bilinear, corners aligned, no threshold.
Array resize_mask(const Array& mask, int64_t height, int64_t width);

// The same for any planes [count,h,w] in float64, to [count,height,width].
std::vector<double> resize_planes(const std::vector<double>& planes, int64_t count,
                                  const std::pair<int64_t, int64_t>& from, const std::pair<int64_t, int64_t>& to);

}  // namespace ebca::internal
