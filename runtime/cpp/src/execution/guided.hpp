// What the guided variants of the op read and write beside the plain ones: a bias per group of tokens, and the groups'
// attention maps.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "contract/manifest.hpp"
#include "contract/tensor.hpp"
#include "devices/device.hpp"

namespace ebca::internal {

// Arrays of the layers that `UNetSpec::subject_layers` names, which all have N positions. Letters: B rows, S contexts,
// T tokens, G groups of tokens, L sources.
class GuidedTensors {
  public:
    // unet: has subject layers, and outlives this. sizes: batch, contexts, tokens, height, width (latent).
    GuidedTensors(const UNetSpec& unet, const Sizes& sizes, int64_t groups, Device& device);

    int64_t groups() const { return groups_; }
    // Height and width of the maps.
    const std::array<int64_t, 2>& grid() const { return grid_; }
    bool is_biased(int64_t layer) const;

    // int32 [B,S,T], the group of each token; -1, as at first, for none.
    const Shared& token_groups() const { return token_groups_.shared(); }
    // float32 [B,S,G,N], zero at first.
    const Shared& bias() const { return bias_.shared(); }
    // The sources' maps [L,B,G,N] float32: on the device, and on the host after an evaluation that downloaded them.
    // Those of a layer begin `layer_stride` elements after those of the layer before.
    Tensor source_maps() const;
    const float* host_maps() const { return seen_.host.floats(); }
    int64_t layer_stride() const { return layer_stride_; }

    // What the host writes and guided variants read, and what these write and the host reads.
    std::vector<Shared> reads() const { return {token_groups(), bias()}; }
    std::vector<Shared> writes() const { return {seen_}; }

    // Add the tensors of the op at a biased layer to its inputs and outputs. Maps of layers that are no sources are not
    // kept.
    void add(int64_t layer, Tensors& inputs, Tensors& outputs) const;

  private:
    const SubjectLayers& layers_;
    int64_t groups_;
    std::array<int64_t, 2> grid_;
    Shape shape_;  // of the maps of a layer
    SharedMemory token_groups_;
    SharedMemory bias_;
    int64_t layer_stride_;
    std::optional<Memory> maps_;
    Shared seen_;
};

}  // namespace ebca::internal
