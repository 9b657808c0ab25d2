// RePaint (Lugmayr et al., 2022, arXiv 2201.09865): inpainting with a model that was not trained for it. At every step
// the part of the image to keep, noised to that step's noise level, replaces what the model made there. Going back to a
// higher noise level and denoising again (a jump) blends the two parts.
#pragma once

#include <cstdint>
#include <vector>

#include "parameters.hpp"
#include "sampling/noise.hpp"
#include "sampling/sampler.hpp"

namespace ebca::internal {

// Settings of RePaint.
struct RePaint {
    int64_t jump_length = defaults::repaint_params::jump_length;  // steps that a jump goes back (j in the paper)
    int64_t jump_count =
        defaults::repaint_params::jump_count;    // how often each stretch is denoised (r in the paper); 1: no jumps
    double eta = defaults::repaint_params::eta;  // 0 as the authors use it (DDIM), 1 for the paper's ancestral steps
    // The context update uses the region that is kept instead of the hole, as the authors' code does by mistake.
    bool update_known = defaults::repaint_params::update_known != 0;
};

// Where the steps of RePaint go, as in diffusers' RePaintScheduler. Level k = 0..steps-1 is training timestep
// k * stride; level -1 is the clean image.
class RePaintSchedule {
  public:
    struct Move {
        int64_t level;
        bool denoise;  // from that level to the one below; else add noise up to that level
    };

    // ParameterError for steps or jumps out of range.
    RePaintSchedule(int64_t steps, const RePaint& settings, std::vector<double> alphas_cumprod);

    int64_t steps() const { return steps_; }
    int64_t stride() const { return static_cast<int64_t>(alphas_cumprod_.size()) / steps_; }
    const std::vector<Move>& moves() const { return moves_; }
    // Every timestep that an evaluation may have, in ascending order.
    std::vector<double> timesteps() const;
    // How often the UNet runs.
    int64_t evaluations() const;
    // Cumulative product of the alphas at a level.
    double alpha(int64_t level) const;
    const std::vector<double>& alphas_cumprod() const { return alphas_cumprod_; }

  private:
    int64_t steps_;
    std::vector<double> alphas_cumprod_;
    std::vector<Move> moves_;
};

// Fill the hole. Returns the latents [n,C,h,w]. start: noise of unit variance; clean: [n,C,h,w] clean latents of the
// image; hole: [n or 1,1,h,w], 1 in the region to regenerate; predictor: prepared with one control per level, the
// highest noise level first. CancelledError, NumericalError.
Array repaint(NoisePredictor& predictor, const RePaintSchedule& schedule, const Array& start, const Array& clean,
              const Array& hole, std::vector<NormalStream>& streams, double eta, const Watch& watch);

}  // namespace ebca::internal
