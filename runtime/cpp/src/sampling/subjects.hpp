// What a run is told about the subjects of its images.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "contract/tensor.hpp"

namespace ebca::internal {

// The subjects of n images, and how strongly they are kept apart. Letters: m evaluations (RePaint: steps), T tokens,
// G groups, h x w the grid of the maps.
struct SubjectInputs {
    std::vector<int32_t> token_groups;  // [n,T], the group of each token of an image's prompt; -1 for none
    std::vector<int32_t> counts;        // [n], subjects of each image: its groups 0 to counts[i] - 1
    Array strengths;                    // [m,2], lambda and mu of each evaluation
    double window = 0;                  // size of a subject's place, in sides of the smaller side
    Array regions;                      // [n,G,h,w] in [0,1], 1 where a subject belongs; read only where `fixed`
    std::vector<int32_t> fixed;         // [n,G], 1: the subject has a region

    // G, the largest number of subjects of an image.
    int64_t groups() const { return regions.size(1); }

    // For contexts of at least as many tokens: other prompts may be longer.
    void lengthen(int64_t tokens) {
        size_t images = counts.size(), before = token_groups.size() / images, after = static_cast<size_t>(tokens);
        std::vector<int32_t> longer(images * after, -1);
        for (size_t n = 0; n < images; ++n) {
            auto row = token_groups.begin() + static_cast<std::ptrdiff_t>(n * before);
            std::copy_n(row, before, longer.begin() + static_cast<std::ptrdiff_t>(n * after));
        }
        token_groups = std::move(longer);
    }
};

}  // namespace ebca::internal
