// Keeps the noise predictions of a DDIM inversion close to noise (Parmar et al., Zero-shot Image-to-Image Translation,
// 2023, arXiv 2302.03027, section 3.2), as the authors of EBCA use it.
#pragma once

#include <cstdint>
#include <vector>

#include "contract/tensor.hpp"
#include "parameters.hpp"
#include "sampling/pcg64.hpp"
#include "sampling/sampler.hpp"

namespace ebca::internal {

// Gradient steps on each noise prediction: off-centre auto-correlation, and divergence from a standard normal.
struct NoiseRegularization {
    // How often both terms are applied.
    int64_t rounds = defaults::regularize_params::rounds;
    // Auto-correlation steps per round, each with shifts of its own.
    int64_t rolls = defaults::regularize_params::rolls;
    // Step sizes; that of the auto-correlation is divided by `rolls`.
    double auto_correlation = defaults::regularize_params::auto_correlation;
    double kl = defaults::regularize_params::kl;
    // Of the shifts.
    uint32_t seed = defaults::regularize_params::seed;

    // What to do to the noise predictions [n,C,h,w] of one inversion. Images are independent: each uses the
    // shifts from the start. ParameterError for settings out of range.
    Adjust start(int64_t images) const;
};

}  // namespace ebca::internal
