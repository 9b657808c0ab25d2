// What the _init functions of ebca.h set, in structs that are zero.
// Written by `python -m ebca.runtime.schema.generate` from schema.toml; edit that file instead.
#pragma once

#include <cmath>

#include "ebca.h"

// clang-format off
namespace ebca::internal {

inline void set_defaults(ebca_device_info&) {}

inline void set_defaults(ebca_engine_params& params) {
    params.device = "cpu";
}

inline void set_defaults(ebca_engine_info&) {}

inline void set_defaults(ebca_session_params& params) {
    params.batch = 1;
}

inline void set_defaults(ebca_edit& params) {
    params.direction = 1;
    params.alpha.value = 1.0;
}

inline void set_defaults(ebca_repaint_params& params) {
    params.jump_length = 10;
    params.jump_count = 10;
}

inline void set_defaults(ebca_step_info&) {}

inline void set_defaults(ebca_generate_params& params) {
    params.steps = -1;
    params.guidance_scale = std::nan("");
    params.norm_factor = 1.0;
    params.strength = std::nan("");
    params.composite = 1;
    params.subject_exclusion.value = 2.0;
    params.subject_balance.value = 1.5;
    params.subject_window = 0.15;
    params.prompt_weighting = 1;
    params.long_prompts = 1;
}

inline void set_defaults(ebca_regularize_params& params) {
    params.rounds = 5;
    params.rolls = 5;
    params.auto_correlation = 20.0;
    params.kl = 20.0;
}

inline void set_defaults(ebca_invert_params& params) {
    params.steps = 50;
    params.prompt_weighting = 1;
    params.long_prompts = 1;
}

inline void set_defaults(ebca_encode_prompt_params& params) {
    params.prompt_weighting = 1;
    params.long_prompts = 1;
}

inline void set_defaults(ebca_encode_images_params&) {}

inline void set_defaults(ebca_denoise_params& params) {
    params.norm_factor = 1.0;
    params.tie_unconditional = 1;
    params.rows_per_image = 2;
}

inline void set_defaults(ebca_result&) {}

}  // namespace ebca::internal
