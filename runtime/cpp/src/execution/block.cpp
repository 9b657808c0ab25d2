#include "execution/block.hpp"

namespace ebca::internal {

Block::Block(Device& device, const std::vector<Spec>& specs) {
    int64_t total = 0;
    for (const Spec& spec : specs) {
        offsets_[spec.name] = total;
        total += (byte_size(spec.shape, spec.dtype) + kAlignment - 1) / kAlignment * kAlignment;
    }
    if (specs.empty()) return;
    memory_ = device.allocate(total);
    for (const Spec& spec : specs) {
        tensors_[spec.name] = memory_->view(offsets_.at(spec.name), spec.shape, spec.dtype);
    }
}

Tensor Block::words() const {
    return memory_->view(0, {memory_->bytes() / static_cast<int64_t>(item_size(DType::int32))}, DType::int32);
}

}  // namespace ebca::internal
