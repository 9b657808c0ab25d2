// Several tensors one after the other in one piece of memory.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "contract/tensor.hpp"
#include "devices/device.hpp"

namespace ebca::internal {

// Tensors of given shapes and dtypes, each aligned to kAlignment.
class Block {
  public:
    struct Spec {
        std::string name;
        Shape shape;
        DType dtype;
    };

    // specs: in the order that they have in memory; none: an empty block, which allocates nothing.
    Block(Device& device, const std::vector<Spec>& specs);

    const std::map<std::string, Tensor>& tensors() const { return tensors_; }
    // Where a tensor begins, in bytes.
    int64_t offset(const std::string& name) const { return offsets_.at(name); }
    // All of the memory as words of 32 bits [size / 4]; not of an empty block.
    Tensor words() const;

  private:
    std::map<std::string, int64_t> offsets_;
    std::map<std::string, Tensor> tensors_;
    std::optional<Memory> memory_;
};

}  // namespace ebca::internal
