#include "conditioning/edits.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "execution/control.hpp"
#include "parameters.hpp"

namespace ebca::internal {

EditValues resolve(const std::vector<Edit>& edits, int64_t steps, int64_t evaluations, const std::string& scheduler) {
    EditValues out;
    auto count = static_cast<size_t>(evaluations);
    for (auto* values : {&out.weights, &out.gamma_attn, &out.gamma_norm}) values->resize(count);
    for (size_t index = 0; index < edits.size(); ++index) {
        const Edit& edit = edits[index];
        const std::string where = text("edits[", index, "]");
        if (edit.direction != 0 && edit.direction != 1) {
            throw rules::edit_direction(where, edit.direction);
        }
        auto column = [&](const Schedule& schedule, const char* name) {
            return resolve(schedule, steps, evaluations, text(where, ".", name), scheduler);
        };
        auto alpha = column(edit.alpha, "alpha"), attn = column(edit.gamma_attn, "gamma_attn"),
             norm = column(edit.gamma_norm, "gamma_norm");
        if (std::any_of(alpha.begin(), alpha.end(), [](float value) { return value < 0; })) {
            throw rules::edit_alpha_negative(where);
        }
        for (size_t i = 0; i < count; ++i) {
            out.weights[i].push_back(edit.direction == 1 ? alpha[i] : -alpha[i]);
            out.gamma_attn[i].push_back(attn[i]);
            out.gamma_norm[i].push_back(norm[i]);
        }
    }
    for (size_t i = 0; i < count; ++i) {
        std::vector<double> row{1.0};
        row.insert(row.end(), out.weights[i].begin(), out.weights[i].end());
        try {
            check_weights(row, 0);
        } catch (const ParameterError&) {
            std::string terms;
            for (float weight : out.weights[i]) {
                terms += text(terms.empty() ? "" : " ", weight >= 0 ? "+ " : "- ", std::abs(weight));
            }
            throw rules::edit_alphas_cancel(i, terms);
        }
    }
    return out;
}

}  // namespace ebca::internal
