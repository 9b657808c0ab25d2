// How the kernels of sampling are launched, as plugins/sampling/launches.py has it. Letters: n images, C h x w latents,
// R rows (n, or 2 n with guidance), S contexts, T tokens.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "contract/tensor.hpp"

namespace ebca::internal {

// One launch: the kernel's integers, and its number of blocks.
struct SamplingLaunch {
    std::map<std::string, int32_t> values;
    int64_t blocks = 1;
};

// The launch of "begin", "embed", "end" or "advance" for arrays by name.
// ParameterError for sizes that a kernel cannot have.
SamplingLaunch sampling_launch(const std::string& kernel, const Tensors& arrays);

}  // namespace ebca::internal
