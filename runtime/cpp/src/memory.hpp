// Whether a call can end well: found before anything is computed or allocated, as runtime/memory.py does it and from
// the same numbers. A lower bound, so that nothing is refused that fits.
#pragma once

#include <cstdint>
#include <string>

#include "contract/manifest.hpp"

namespace ebca::internal {

// What helps where memory is short.
inline constexpr const char* kLessMemory = "make a smaller image, or fewer at once";

// Whether the message of an inference library, or of the system, is about memory or threads that cannot be had.
bool is_about_memory(const std::string& message);

// What a call computes, as far as its memory depends on it.
struct CallSizes {
    Sizes evaluation;         // batch (rows), contexts, tokens, height, width (latent)
    int64_t images = 1;       // of the call
    int64_t pixels = 0;       // of one image
    int64_t evaluations = 0;  // whose noise predictions and controls are kept; 0: one evaluation
    int64_t texts = 0;        // that are encoded together, at least
    bool encodes = false;     // an image
    bool decodes = false;
    bool tiled = false;  // both in tiles
};

// OutOfMemoryError if a call does not fit. half: components may run at bfloat16. what: is made, for the message.
void check_host_memory(const Manifest& manifest, bool half, const CallSizes& call, const std::string& what);

}  // namespace ebca::internal
