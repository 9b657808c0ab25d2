#include "conditioning/timeline.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "parameters.hpp"

namespace ebca::internal {

Timeline Timeline::make(const Schedule& gamma_attn, const Schedule& gamma_norm, const std::vector<Edit>& edits,
                        int64_t steps, int64_t evaluations, const std::string& scheduler) {
    return {resolve(gamma_attn, steps, evaluations, "gamma_attn", scheduler),
            resolve(gamma_norm, steps, evaluations, "gamma_norm", scheduler),
            resolve(edits, steps, evaluations, scheduler)};
}

std::vector<Control> Timeline::controls(const Prompts& prompts, double norm_factor,
                                        std::shared_ptr<const LayerMasks> masks) const {
    if (!std::isfinite(static_cast<float>(norm_factor))) {
        throw rules::norm_factor(norm_factor);
    }
    int64_t rows = prompts.token_factors.size(0), tokens = prompts.token_factors.size(1);
    auto contexts = static_cast<int64_t>(prompts.edits.size()) + 1;
    Array tie = tie_matrix(rows, contexts, prompts.unconditional ? rows / 2 : 0);
    std::vector<Control> out;
    for (size_t i = 0; i < gamma_attn.size(); ++i) {
        Control control;
        control.gamma_attn = Array({rows, contexts, tokens});
        control.gamma_norm = Array({rows, contexts}, gamma_norm[i]);
        control.weights = Array({rows, contexts}, 1.0f);
        control.tie = tie;
        control.norm_factor = static_cast<float>(norm_factor);
        control.masks = masks;
        for (int64_t row = 0; row < rows; ++row) {
            float* attn = control.gamma_attn.row(row);
            std::transform(prompts.token_factors.row(row), prompts.token_factors.row(row) + tokens, attn,
                           [&](float factor) { return factor * gamma_attn[i]; });
            for (int64_t s = 1; s < contexts; ++s) {
                std::fill_n(attn + s * tokens, tokens, edits.gamma_attn[i][static_cast<size_t>(s - 1)]);
                control.gamma_norm.row(row)[s] = edits.gamma_norm[i][static_cast<size_t>(s - 1)];
                control.weights.row(row)[s] = edits.weights[i][static_cast<size_t>(s - 1)];
            }
        }
        if (!all_finite(control.gamma_attn.values.data(), static_cast<int64_t>(control.gamma_attn.values.size()))) {
            throw rules::gamma_not_finite("gamma_attn");
        }
        out.push_back(std::move(control));
    }
    return out;
}

}  // namespace ebca::internal
