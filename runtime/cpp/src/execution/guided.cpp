#include "execution/guided.hpp"

#include <algorithm>

namespace ebca::internal {
namespace {

// The kernels read and write vectors of 16 bytes.
constexpr int64_t kAligned = 4;

std::array<int64_t, 2> grid_of(const UNetSpec& unet, const Sizes& sizes) {
    const LayerSpec& layer = unet.layers.at(static_cast<size_t>(unet.subject_layers->biased.front()));
    return {evaluate(layer.height, sizes), evaluate(layer.width, sizes)};
}

// Maps in memory: those of each source, and one for all others.
int64_t slots_of(const SubjectLayers& layers) {
    auto sources = static_cast<int64_t>(layers.sources.size());
    return sources + (layers.sources.size() < layers.biased.size());
}

}  // namespace

GuidedTensors::GuidedTensors(const UNetSpec& unet, const Sizes& sizes, int64_t groups, Device& device)
    : layers_(*unet.subject_layers),
      groups_(groups),
      grid_(grid_of(unet, sizes)),
      shape_{sizes.at("batch"), groups, grid_[0] * grid_[1]},
      token_groups_(device, {sizes.at("batch"), sizes.at("contexts"), sizes.at("tokens")}, DType::int32),
      bias_(device, {sizes.at("batch"), sizes.at("contexts"), groups, shape_[2]}, DType::float32),
      layer_stride_((elements(shape_) + kAligned - 1) / kAligned * kAligned) {
    std::fill_n(static_cast<int32_t*>(token_groups().host.data), token_groups().host.count(), -1);
    Shape slots{slots_of(layers_), layer_stride_};
    maps_ = device.allocate(byte_size(slots, DType::float32));
    seen_ = device.share(maps_->view(0, slots, DType::float32));
}

bool GuidedTensors::is_biased(int64_t layer) const {
    return std::binary_search(layers_.biased.begin(), layers_.biased.end(), layer);
}

Tensor GuidedTensors::source_maps() const {
    Shape shape = shape_;
    shape.insert(shape.begin(), static_cast<int64_t>(layers_.sources.size()));
    return maps_->view(0, shape, DType::float32);
}

void GuidedTensors::add(int64_t layer, Tensors& inputs, Tensors& outputs) const {
    const std::vector<int64_t>& sources = layers_.sources;
    int64_t slot = std::find(sources.begin(), sources.end(), layer) - sources.begin();
    int64_t offset = slot * layer_stride_ * static_cast<int64_t>(item_size(DType::float32));
    inputs.emplace_back("bias", bias().array);
    inputs.emplace_back("token_groups", token_groups().array);
    outputs.emplace_back("maps", maps_->view(offset, shape_, DType::float32));
}

}  // namespace ebca::internal
