// One arena for all tensors of the UNet's steps: two tensors share memory if their lifetimes do not overlap.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "contract/manifest.hpp"

namespace ebca::internal {

// A tensor of `bytes`, written at step `first` and last read at step `last` (inclusive).
struct Lifetime {
    int64_t bytes = 0;
    int64_t first = 0;
    int64_t last = 0;

    bool meets(const Lifetime& other) const { return first <= other.last && other.first <= last; }
};

// Offset of every tensor, and the arena's size, in bytes.
struct Layout {
    std::map<std::string, int64_t> offsets;
    int64_t bytes = 0;
};

// Lifetime of every tensor of the steps. sizes: bytes per tensor. keep: inputs and outputs of the UNet; they live
// through the evaluation, so that it can be replayed unchanged.
std::map<std::string, Lifetime> lifetimes(const std::vector<Step>& steps, const std::map<std::string, int64_t>& sizes,
                                          const std::vector<std::string>& keep);

// Place the largest first, each at the lowest offset that is free during its lifetime. EngineError if the sum
// overflows.
Layout lay_out(const std::map<std::string, Lifetime>& tensors);

}  // namespace ebca::internal
