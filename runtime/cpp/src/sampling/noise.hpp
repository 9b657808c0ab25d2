// `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`, as runtime/noise.py computes
// it.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "contract/tensor.hpp"

namespace ebca::internal {

// Standard normal values, draw after draw, equal to those of one PyTorch CPU generator within 1e-6.
class NormalStream {
  public:
    // Seeds equal modulo 2^32 give the same values, as in PyTorch.
    explicit NormalStream(int64_t seed) : words_(static_cast<uint32_t>(static_cast<uint64_t>(seed))) {}

    // The next `count` values.
    void randn(float* out, int64_t count);

  private:
    float uniform24();
    double uniform53();
    void few(float* out, int64_t count);

    std::mt19937 words_;
    // PyTorch keeps the second value of its last pair for the next draw of fewer than 16.
    std::optional<double> spare_;
};

// The next values for n images [n,...]: from one stream for all of them, or from one each.
Array draw(std::vector<NormalStream>& streams, const Shape& shape);

}  // namespace ebca::internal
