// RePaint (Lugmayr et al., 2022, arXiv 2201.09865): inpainting with a model that was not trained for it. At every step
// the known part of the picture, noised to the level of that step, replaces what the model made of it. Going back to
// more noise and down again (a jump) lets the two parts grow together.
#pragma once

#include <cstdint>
#include <vector>

#include "sampling/noise.hpp"
#include "sampling/sampler.hpp"

namespace ebca {

// Settings of RePaint.
struct RePaint {
    int64_t jump_length = 10;   // steps that a jump goes back (j in the paper)
    int64_t jump_count = 10;    // how often each stretch is denoised (r in the paper); 1: no jumps
    double eta = 0;             // 0 as the authors use it (DDIM), 1 for the paper's ancestral steps
    bool update_known = false;  // let the context update look at the known region, as the authors' code does by mistake
};

// Where the steps of RePaint go, as in diffusers' RePaintScheduler. Level k = 0..steps-1 is training timestep
// k * stride; level -1 is the clean picture.
class RePaintPlan {
  public:
    struct Move {
        int64_t level;
        bool denoise;  // from that level to the one below; else add noise up to that level
    };

    // ParameterError for steps or jumps out of range.
    RePaintPlan(int64_t steps, const RePaint& settings, std::vector<double> alphas_cumprod);

    int64_t steps() const { return steps_; }
    int64_t stride() const { return static_cast<int64_t>(alphas_cumprod_.size()) / steps_; }
    const std::vector<Move>& moves() const { return moves_; }
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

// Fill the hole. Returns the latents [n,C,h,w]. start: noise of unit variance; known: [n,C,h,w] latents of the picture;
// hole: [n or 1,1,h,w], 1 where the picture is made anew; controls: one per level, the noisiest first.
// CancelledError, NumericalError.
Array repaint(NoisePredictor& predictor, const RePaintPlan& plan, const Array& start, const Array& known,
              const Array& hole, const std::vector<Control>& controls, std::vector<NormalStream>& streams, double eta,
              const Watch& watch);

}  // namespace ebca
