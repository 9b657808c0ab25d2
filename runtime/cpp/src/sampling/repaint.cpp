#include "sampling/repaint.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include "error.hpp"
#include "parameters.hpp"

namespace ebca::internal {
namespace {

// Equations 8a to 8c of the paper with DDIM's step (arXiv 2010.02502, equation 12) in place of DDPM's.
void step(Array& latents, const Array& predicted, const Array& kept, const Array& hole, const Array& noise,
          double alpha, double alpha_below, int64_t level, double eta) {
    double deviation = eta * std::sqrt((1 - alpha_below) / (1 - alpha) * (1 - alpha / alpha_below));
    double of_predicted = std::sqrt(1 - alpha_below - deviation * deviation);
    double below = std::sqrt(alpha_below), rest = std::sqrt(1 - alpha_below);
    int64_t plane = latents.size(2) * latents.size(3);
    for (int64_t n = 0; n < latents.size(0); ++n) {
        const float* inside = hole.row(hole.size(0) == 1 ? 0 : n);
        for (int64_t i = 0; i < latents.stride(); ++i) {
            int64_t at = n * latents.stride() + i;
            double e = predicted.values[at], z = noise.values[at], h = inside[i % plane];
            double clean = (latents.values[at] - std::sqrt(1 - alpha) * e) / std::sqrt(alpha);
            double made = below * clean + of_predicted * e;
            if (level > 0) made += deviation * z;
            double given = below * kept.values[at] + rest * z;
            latents.values[at] = static_cast<float>(h * made + (1 - h) * given);
        }
    }
}

// From one level to the next higher noise level, training timestep by training timestep.
void add_noise(Array& latents, const RePaintSchedule& schedule, int64_t level, std::vector<NormalStream>& streams) {
    std::vector<double> result(latents.values.begin(), latents.values.end());
    for (int64_t timestep = level * schedule.stride(); timestep < (level + 1) * schedule.stride(); ++timestep) {
        double last = timestep ? schedule.alphas_cumprod()[timestep - 1] : 1.0;
        double keep = schedule.alphas_cumprod()[timestep] / last;
        double old = std::sqrt(keep), fresh = std::sqrt(1 - keep);
        Array noise = draw(streams, latents.shape);
        for (size_t i = 0; i < result.size(); ++i) result[i] = old * result[i] + fresh * noise.values[i];
    }
    std::transform(result.begin(), result.end(), latents.values.begin(),
                   [](double value) { return static_cast<float>(value); });
}

}  // namespace

RePaintSchedule::RePaintSchedule(int64_t steps, const RePaint& settings, std::vector<double> alphas_cumprod)
    : steps_(steps), alphas_cumprod_(std::move(alphas_cumprod)) {
    auto limit = static_cast<int64_t>(alphas_cumprod_.size());
    if (steps < 1 || steps > limit) throw rules::repaint_steps(steps, limit);
    if (settings.jump_length < 1) throw rules::at_least_one("jump_length", settings.jump_length);
    if (settings.jump_count < 1) throw rules::at_least_one("jump_count", settings.jump_count);
    std::map<int64_t, int64_t> left;
    for (int64_t level = 0; level < steps - settings.jump_length; level += settings.jump_length) {
        left[level] = settings.jump_count - 1;
    }
    auto visit = [&](int64_t level, bool denoise) {
        if (static_cast<int64_t>(moves_.size()) == limits::moves) {
            throw rules::repaint_moves(settings.jump_count, limits::moves);
        }
        moves_.push_back({level, denoise});
    };
    for (int64_t level = steps; level > 0;) {
        visit(--level, true);
        auto found = left.find(level);
        if (found == left.end() || found->second <= 0) continue;
        --found->second;
        for (int64_t back = 0; back < settings.jump_length; ++back) visit(++level, false);
    }
}

int64_t RePaintSchedule::evaluations() const {
    return std::count_if(moves_.begin(), moves_.end(), [](const Move& move) { return move.denoise; });
}

std::vector<double> RePaintSchedule::timesteps() const {
    std::vector<double> out;
    for (int64_t level = 0; level < steps_; ++level) out.push_back(static_cast<double>(level * stride()));
    return out;
}

double RePaintSchedule::alpha(int64_t level) const {
    return level >= 0 ? alphas_cumprod_[level * stride()] : 1.0;
}

Array repaint(NoisePredictor& predictor, const RePaintSchedule& schedule, const Array& start, const Array& clean,
              const Array& hole, std::vector<NormalStream>& streams, double eta, const Watch& watch) {
    Array latents = start, predicted(start.shape);
    int64_t before = schedule.steps(), done = 0, total = schedule.evaluations();
    for (auto [level, denoise] : schedule.moves()) {
        if (!denoise) {
            add_noise(latents, schedule, before, streams);
            before = level;
            continue;
        }
        auto timestep = static_cast<double>(level * schedule.stride());
        predictor.predict(latents, timestep, static_cast<size_t>(schedule.steps() - 1 - level), predicted);
        Array noise = draw(streams, latents.shape);
        step(latents, predicted, clean, hole, noise, schedule.alpha(level), schedule.alpha(level - 1), level, eta);
        check_latents(latents, timestep);
        before = level;
        watch.report({done++, total, timestep, latents, predictor.executor().contexts_out()});
    }
    return latents;
}

}  // namespace ebca::internal
