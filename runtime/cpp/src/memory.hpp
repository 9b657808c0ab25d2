// Whether a session can end well: found before anything is computed or allocated, as runtime/memory.py does it. Here only
// the arena of an evaluation counts.
#pragma once

#include <cstdint>
#include <string>

#include "contract/manifest.hpp"

namespace ebca::internal {

// OutOfMemoryError if the tensors of one evaluation do not fit. sizes: batch (rows), contexts, tokens, height, width.
void check_host_memory(const UNetSpec& unet, const Sizes& sizes, const std::string& what);

}  // namespace ebca::internal
