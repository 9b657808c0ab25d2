// The sampling loop: one guided noise prediction after the other, from the initial latents to the end of a table.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "contract/tensor.hpp"
#include "execution/control.hpp"
#include "execution/executor.hpp"
#include "execution/time_table.hpp"
#include "sampling/exclusion.hpp"
#include "sampling/noise.hpp"
#include "sampling/schedulers.hpp"
#include "sampling/subjects.hpp"
#include "telemetry/telemetry.hpp"

namespace ebca::internal {

// State after one evaluation; the arrays are overwritten by the next one.
struct StepInfo {
    int64_t index;  // from 0
    int64_t total;  // number of evaluations (PNDM makes one more than steps)
    double timestep;
    const Array& latents;    // [n,C,h,w]
    const Tensor& contexts;  // [B,S,T,D] after the last layer
    double unit_scale = 1;   // what the UNet's next input is, as a multiple of the latents; 1 after the last evaluation
};

// Called after each evaluation; false cancels.
using OnStep = std::function<bool(const StepInfo&)>;

// Changes a guided noise prediction [n,C,h,w] in place before the scheduler takes it.
using Adjust = std::function<void(Array&)>;

// How a running generation is observed and stopped.
struct Watch {
    OnStep on_step;
    Cancellation* cancellation = nullptr;

    // CancelledError if either asks for it.
    void report(const StepInfo& info) const;
};

// Outputs of one run.
struct Samples {
    Array latents;                  // [n,C,h,w]
    std::vector<double> timesteps;  // one per evaluation, as all that follow
    std::vector<double> seconds;
};

// Guided noise predictions of one generation, with the state that one evaluation hands to the next.
class NoisePredictor {
  public:
    // executor: its contexts hold the prompts' embeddings; with guidance the unconditional rows come first.
    // guidance_scale: none: conditional rows only. extra_channels: [n,K,h,w] channels that follow the latents into the
    // UNet of an inpainting model; null for other models. reset_edits: start every evaluation from the embeddings of
    // the editing prompts instead of the contexts of the last evaluation. subjects: of the images, which are kept
    // apart; null: none. The executor has a group for each. telemetry: null: nothing is recorded.
    NoisePredictor(Executor& executor, std::optional<double> guidance_scale, const Array* extra_channels,
                   bool reset_edits, Cancellation* cancellation, const SubjectInputs* subjects = nullptr,
                   Telemetry* telemetry = nullptr);

    // Bind and record the variants of all controls, which must outlive this, and embed all timesteps that an evaluation
    // may have in one call.
    void prepare(const std::vector<Control>& controls, const std::vector<double>& timesteps);

    // One evaluation: latents [n,C,h,w] as the UNet takes them to the guided noise prediction in `out`. control: index
    // of the control. NumericalError: a result is not finite; the message names the segment.
    void predict(const Array& latents, double timestep, size_t control, Array& out);

    Executor& executor() { return executor_; }
    const std::vector<double>& seconds() const { return seconds_; }
    const std::vector<double>& timesteps() const { return timesteps_; }

  private:
    Variant variant(const Control& control) const;
    void run(Variant variant);
    void guide(int64_t images, Array& out) const;

    Executor& executor_;
    std::optional<float> guidance_scale_;
    bool carry_;
    Cancellation* cancellation_;
    std::unique_ptr<HostExclusion> exclusion_;  // null: nothing is kept apart
    Telemetry* telemetry_;
    const std::vector<Control>* controls_ = nullptr;
    std::unique_ptr<HostEmbeddings> embeddings_;  // null: each evaluation embeds its timestep
    std::vector<double> seconds_;
    std::vector<double> timesteps_;
};

// Run every evaluation of a scheduler table. Returns the latents [n,C,h,w]. predictor: prepared with one control per
// evaluation; start: noise of unit variance; streams: of a stochastic table, what `start` was drawn from; adjust: null:
// nothing. CancelledError, NumericalError.
Array sample(NoisePredictor& predictor, const SchedulerTable& table, const Array& start,
             std::vector<NormalStream>& streams, const Watch& watch, const Adjust& adjust = {});

// Write the channels [n,K,h,w] that follow the latents into the UNet of an inpainting model, for all rows.
void set_extra_channels(Executor& executor, const Array& channels);

// NumericalError if what the last run of a variant made is not finite; the message names the segment.
void check_finite(Executor& executor, Variant variant, double timestep);

// NumericalError for latents that are not finite.
void check_latents(const Array& latents, double timestep);

}  // namespace ebca::internal
