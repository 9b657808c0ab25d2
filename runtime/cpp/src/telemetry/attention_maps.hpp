// Maps of the attention to each token of the prompt, as runtime/telemetry/attention_maps.py makes them.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "contract/manifest.hpp"
#include "contract/tensor.hpp"

namespace ebca::internal {

// Mean cross-attention probabilities per token of the main prompt, over heads, layers and evaluations. Maps of all
// layers are resized to the latent size first, so that each layer has the same weight.
class AttentionMaps {
  public:
    // sizes: of the executor: batch, contexts, tokens, height, width. images: n; the last n rows of the executor are
    // their conditional rows.
    AttentionMaps(const UNetSpec& unet, const Sizes& sizes, int64_t images);

    // Add one layer of one evaluation: its q [B,N,C] and k [B,S,T,C].
    void add(int64_t layer, const Tensor& q, const Tensor& k);

    // [n,T,h,w]; at each position the values of all tokens sum to 1.
    Array maps() const;

  private:
    struct Layer {
        int64_t heads, height, width;
    };

    std::vector<Layer> layers_;
    Shape shape_;              // [n,T,h,w]
    std::vector<double> sum_;  // of this shape
    int64_t count_ = 0;
};

}  // namespace ebca::internal
