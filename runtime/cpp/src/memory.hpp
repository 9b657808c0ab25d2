// Whether a session can end well: found before anything is computed or allocated, as runtime/memory.py does it. Here only
// the arena of an evaluation counts.
#pragma once

#include <cstdint>
#include <string>

#include "contract/manifest.hpp"

namespace ebca::internal {

// Host memory that this process can have for one call at most: what the machine has available, within the limits of the
// process's control groups (version 2) and of RLIMIT_AS, and what the process itself holds. INT64_MAX if it is unknown.
int64_t available_bytes();

// OutOfMemoryError if the tensors of one evaluation do not fit. sizes: batch (rows), contexts, tokens, height, width.
void check_host_memory(const UNetSpec& unet, const Sizes& sizes, const std::string& what);

// Of this machine, whatever its limits; 0 if it does not say.
int64_t machine_bytes();

}  // namespace ebca::internal
