// How the kernel of exclusive attention is launched, as plugins/exclusive_attention/launches.py has it.
#pragma once

#include <cstdint>

#include "contract/tensor.hpp"
#include "devices/sampling_launches.hpp"

namespace ebca::internal {

// The launch for arrays by name. layer_stride: elements from the maps of one source layer to those of the next.
// ParameterError for sizes that the kernel does not have.
SamplingLaunch exclusion_launch(const Tensors& arrays, int64_t layer_stride);

}  // namespace ebca::internal
