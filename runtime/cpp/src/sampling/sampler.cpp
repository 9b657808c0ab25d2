#include "sampling/sampler.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "error.hpp"
#include "parameters.hpp"
#include "sampling/known.hpp"

namespace ebca::internal {

void Watch::report(const StepInfo& info) const {
    bool stop = (on_step && !on_step(info)) || (cancellation && cancellation->requested());
    if (stop) throw rules::cancelled(info.index + 1, info.total);
}

NoisePredictor::NoisePredictor(Executor& executor, std::optional<double> guidance_scale, const Array* extra_channels,
                               bool reset_edits, Cancellation* cancellation, const SubjectInputs* subjects,
                               Telemetry* telemetry)
    : executor_(executor),
      carry_(executor.sizes().at("contexts") > 1 && !reset_edits),
      cancellation_(cancellation),
      telemetry_(telemetry) {
    if (guidance_scale) guidance_scale_ = static_cast<float>(*guidance_scale);
    if (extra_channels) set_extra_channels(executor, *extra_channels);
    if (subjects) exclusion_ = std::make_unique<HostExclusion>(*executor.guided(), *subjects);
}

Variant NoisePredictor::variant(const Control& control) const {
    Variant chosen = telemetry_ && telemetry_->records_energies() ? Variant::energies : control.variant();
    return exclusion_ ? guided(chosen) : chosen;
}

void NoisePredictor::prepare(const std::vector<Control>& controls, const std::vector<double>& timesteps) {
    bool probed = telemetry_ && telemetry_->attention();
    bool steps = !probed && std::any_of(controls.begin(), controls.end(),
                                        [&](const Control& one) { return executor_.runs_steps(variant(one)); });
    if (steps && executor_.unet().time_step() && executor_.on_host()) {
        embeddings_ = std::make_unique<HostEmbeddings>(executor_, timesteps);
    }
    for (const Control& control : controls) executor_.bind(variant(control), embeddings_ != nullptr);
    controls_ = &controls;
}

void NoisePredictor::predict(const Array& latents, double timestep, size_t control, Array& out) {
    if (exclusion_) exclusion_->apply(control);
    const Tensor& sample = executor_.sample();
    int64_t width = sample.count() / sample.shape[0];
    // With guidance the same latents go to both halves of the rows.
    for (int64_t row = 0; row < sample.shape[0]; ++row) {
        std::copy_n(latents.row(row % latents.size(0)), latents.stride(), sample.floats() + row * width);
    }
    std::fill_n(executor_.timestep().floats(), executor_.timestep().count(), static_cast<float>(timestep));
    executor_.set_control((*controls_)[control]);
    Variant variant = this->variant((*controls_)[control]);
    auto began = std::chrono::steady_clock::now();
    if (embeddings_) embeddings_->write(timestep);
    run(variant);
    seconds_.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    check_finite(executor_, variant, timestep);
    guide(latents.size(0), out);
    if (carry_) {
        const Tensor &from = executor_.contexts_out(), &to = executor_.contexts();
        int64_t context = to.shape[2] * to.shape[3], row = to.shape[1] * context;
        for (int64_t b = 0; b < to.shape[0]; ++b) {
            std::copy_n(from.floats() + b * row + context, row - context, to.floats() + b * row + context);
        }
    }
    if (telemetry_) telemetry_->record(executor_);
    timesteps_.push_back(timestep);
}

void NoisePredictor::run(Variant variant) {
    AttentionMaps* maps = telemetry_ ? telemetry_->attention() : nullptr;
    if (!maps) {
        executor_.run(variant, cancellation_, embeddings_ != nullptr);
        return;
    }
    executor_.run_probed(variant, cancellation_,
                         [&](int64_t layer, const Tensor& q, const Tensor& k) { maps->add(layer, q, k); });
}

// unconditional + scale * (conditional - unconditional), or the conditional half alone.
void NoisePredictor::guide(int64_t images, Array& out) const {
    const float* noise = executor_.noise().floats();
    int64_t count = out.stride() * images;
    if (!guidance_scale_) {
        std::copy_n(noise, count, out.values.data());
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        float difference = noise[count + i] - noise[i];
        out.values[i] = difference * *guidance_scale_ + noise[i];
    }
}

Array sample(NoisePredictor& predictor, const SchedulerTable& table, const Array& start,
             std::vector<NormalStream>& streams, const Watch& watch, const Adjust& adjust) {
    Scheduler scheduler(table, start.shape);
    Array begin = scheduler.start(start), current = begin, input(start.shape);
    std::optional<KnownLatents> known;
    if (table.stochastic()) known.emplace(table, begin, streams);
    for (int64_t i = 0; i < table.evaluations(); ++i) {
        double timestep = table.timesteps[static_cast<size_t>(i)];
        scheduler.model_input(i, current, input);
        predictor.predict(input, timestep, static_cast<size_t>(i), scheduler.noise(i));
        if (adjust) adjust(scheduler.noise(i));
        if (known) known->next(begin);
        scheduler.combine(i, begin, current);
        check_latents(current, timestep);
        watch.report(
            {i, table.evaluations(), timestep, current, predictor.executor().contexts_out(), table.scale_after(i)});
    }
    return current;
}

void set_extra_channels(Executor& executor, const Array& channels) {
    const Tensor& sample = executor.sample();
    int64_t plane = sample.shape[2] * sample.shape[3], width = sample.shape[1] * plane;
    int64_t latents = executor.noise().shape[1];
    for (int64_t row = 0; row < sample.shape[0]; ++row) {
        std::copy_n(channels.row(row % channels.size(0)), channels.stride(),
                    sample.floats() + row * width + latents * plane);
    }
}

void check_finite(Executor& executor, Variant variant, double timestep) {
    if (all_finite(executor.noise()) && all_finite(executor.contexts_out())) return;
    std::string culprit = executor.first_nonfinite(variant);
    if (culprit.empty()) culprit = "the last segment";
    std::string given;
    if (!all_finite(executor.sample())) given = "sample";
    if (!all_finite(executor.contexts())) given += given.empty() ? "contexts" : " and the contexts";
    if (given.empty()) throw rules::result_not_finite(timestep, culprit);
    throw rules::result_of_bad_input(timestep, culprit, given);
}

void check_latents(const Array& latents, double timestep) {
    if (all_finite(latents.values.data(), static_cast<int64_t>(latents.values.size()))) return;
    throw rules::latents_ran_away(timestep);
}

}  // namespace ebca::internal
