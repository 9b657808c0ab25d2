// What changes from evaluation to evaluation: step sizes and weights of the main prompt and of the editing prompts.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "conditioning/edits.hpp"
#include "conditioning/prompts.hpp"
#include "conditioning/schedules.hpp"
#include "execution/control.hpp"

namespace ebca::internal {

// Values of m evaluations.
struct Timeline {
    std::vector<float> gamma_attn;
    std::vector<float> gamma_norm;
    EditValues edits;

    // Evaluate every schedule at every evaluation. scheduler: for messages. ParameterError for a schedule that does not
    // fit.
    static Timeline make(const Schedule& gamma_attn, const Schedule& gamma_norm, const std::vector<Edit>& edits,
                         int64_t steps, int64_t evaluations, const std::string& scheduler);

    // One control per evaluation. masks: null: none.
    std::vector<Control> controls(const Prompts& prompts, double norm_factor,
                                  std::shared_ptr<const LayerMasks> masks) const;
};

}  // namespace ebca::internal
