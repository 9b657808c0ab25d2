// What the _init functions of ebca.h set, in structs that are zero, and the sizes of these structs.
// Written by `python -m ebca.runtime.schema.generate` from schema.toml; edit that file instead.
#pragma once

#include <cmath>
#include <cstddef>

#include "ebca.h"

// clang-format off
namespace ebca::internal {

// Of a struct in the first release that had it: the least that a host may announce.
template <typename Params>
inline constexpr size_t first_size = 0;

inline void set_defaults(ebca_device_info&) {}

template <>
inline constexpr size_t first_size<ebca_device_info> = sizeof(ebca_device_info);

inline void set_defaults(ebca_engine_params& params) {
    params.device = "cpu";
}

template <>
inline constexpr size_t first_size<ebca_engine_params> = sizeof(ebca_engine_params);

inline void set_defaults(ebca_engine_info&) {}

template <>
inline constexpr size_t first_size<ebca_engine_info> = sizeof(ebca_engine_info);

inline void set_defaults(ebca_session_params& params) {
    params.batch = 1;
}

template <>
inline constexpr size_t first_size<ebca_session_params> = sizeof(ebca_session_params);

inline void set_defaults(ebca_edit& params) {
    params.direction = 1;
    params.alpha.value = 1.0;
}

template <>
inline constexpr size_t first_size<ebca_edit> = sizeof(ebca_edit);

inline void set_defaults(ebca_repaint_params& params) {
    params.jump_length = 10;
    params.jump_count = 10;
}

template <>
inline constexpr size_t first_size<ebca_repaint_params> = sizeof(ebca_repaint_params);

inline void set_defaults(ebca_step_info&) {}

template <>
inline constexpr size_t first_size<ebca_step_info> = sizeof(ebca_step_info);

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

template <>
inline constexpr size_t first_size<ebca_generate_params> = sizeof(ebca_generate_params);

inline void set_defaults(ebca_regularize_params& params) {
    params.rounds = 5;
    params.rolls = 5;
    params.auto_correlation = 20.0;
    params.kl = 20.0;
}

template <>
inline constexpr size_t first_size<ebca_regularize_params> = sizeof(ebca_regularize_params);

inline void set_defaults(ebca_invert_params& params) {
    params.steps = 50;
    params.prompt_weighting = 1;
    params.long_prompts = 1;
}

template <>
inline constexpr size_t first_size<ebca_invert_params> = sizeof(ebca_invert_params);

inline void set_defaults(ebca_encode_prompt_params& params) {
    params.prompt_weighting = 1;
    params.long_prompts = 1;
}

template <>
inline constexpr size_t first_size<ebca_encode_prompt_params> = sizeof(ebca_encode_prompt_params);

inline void set_defaults(ebca_encode_images_params&) {}

template <>
inline constexpr size_t first_size<ebca_encode_images_params> = sizeof(ebca_encode_images_params);

inline void set_defaults(ebca_denoise_params& params) {
    params.norm_factor = 1.0;
    params.tie_unconditional = 1;
    params.rows_per_image = 2;
}

template <>
inline constexpr size_t first_size<ebca_denoise_params> = sizeof(ebca_denoise_params);

inline void set_defaults(ebca_result&) {}

template <>
inline constexpr size_t first_size<ebca_result> = sizeof(ebca_result);

}  // namespace ebca::internal
