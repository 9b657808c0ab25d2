// Symbolic tensor dimensions: an integer, or a product of names and integers joined by `*`. Names: batch, contexts,
// tokens; height and width of the latents; height_K, width_K: the same after K halvings, each rounded up.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "contract/tensor.hpp"

namespace ebca::internal {

// Values of the base names: "batch", "height", ...
using Sizes = std::map<std::string, int64_t>;

struct Dim {
    struct Factor {
        std::string name;
        int halvings = 0;
    };

    int64_t constant = 1;
    std::vector<Factor> factors;  // sorted
    std::string text;             // as the manifest spells it
};

// Values of symbolic dimensions by their texts: "batch", "height_2*width_2", ...
using Dimensions = std::map<std::string, int64_t>;

// EngineError for anything that is not of the language.
Dim parse_dim(std::string_view spelled);
Dim parse_dim(int64_t value);

// Whether both have the same value at all sizes.
bool is_same(const Dim& a, const Dim& b);
bool is_same(const std::vector<Dim>& a, const std::vector<Dim>& b);

// EngineError where a name is not in `sizes`, or the product does not fit 63 bits.
int64_t evaluate(const Dim& dim, const Sizes& sizes);
Shape evaluate(const std::vector<Dim>& dims, const Sizes& sizes);

}  // namespace ebca::internal
