// Keeping the noise predictions of a DDIM inversion like noise (Parmar et al., Zero-shot Image-to-Image Translation,
// 2023, arXiv 2302.03027, section 3.2), as the authors of EBCA use it.
#pragma once

#include <cstdint>
#include <vector>

#include "contract/tensor.hpp"
#include "sampling/pcg64.hpp"
#include "sampling/sampler.hpp"

namespace ebca {

// Gradient steps on each noise prediction: off-centre auto-correlation, and divergence from a standard normal.
struct NoiseRegularization {
    int64_t rounds = 5;            // how often both are applied
    int64_t rolls = 5;             // auto-correlation steps per round, each with shifts of its own
    double auto_correlation = 20;  // step sizes; that of the auto-correlation is divided by `rolls`
    double kl = 20;
    uint32_t seed = 0;  // of the shifts

    // What to do to the noise predictions [n,C,h,w] of one inversion. Pictures do not touch each other: each uses the
    // shifts from the start. ParameterError for settings that cannot be.
    Adjust start(int64_t pictures) const;
};

}  // namespace ebca
