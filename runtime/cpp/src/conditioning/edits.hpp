// Editing prompts: composition by conjunction and negation (EBCQ in the paper, CACAO in the authors' code).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "conditioning/prompts.hpp"
#include "conditioning/schedules.hpp"
#include "parameters.hpp"

namespace ebca::internal {

// One editing prompt. Its attention output joins the main prompt's as (main + sum of +-alpha edit) / (1 + sum).
struct Edit {
    Prompt prompt;
    int direction = defaults::edit::direction;  // 1 adds what the prompt says (conjunction), 0 takes it away (negation)
    Schedule alpha{Schedule::Kind::constant, defaults::edit::alpha, 0.0, {}};
    Schedule gamma_attn;  // of the update of this prompt's own context
    Schedule gamma_norm;
};

// Values of E edits at each of m evaluations: [m][E].
struct EditValues {
    std::vector<std::vector<float>> weights;  // signed
    std::vector<std::vector<float>> gamma_attn;
    std::vector<std::vector<float>> gamma_norm;
};

// Check the edits and lay their schedules out. ParameterError for a direction other than 0 and 1, a negative alpha, a
// schedule that does not fit, or alphas that cancel the main prompt at some evaluation.
EditValues resolve(const std::vector<Edit>& edits, int64_t steps, int64_t evaluations, const std::string& scheduler);

}  // namespace ebca::internal
