// Bounds of what manifest.json says, the same in Python and C++.
// Written by `python -m ebca.runtime.schema.generate` from schema.toml; edit that file instead.
#pragma once

#include <cstdint>

// clang-format off
namespace ebca::internal::limits {

// Size of manifest.json, and of a tokenizer.
inline constexpr int64_t manifest_bytes = 67108864;

// Objects and lists inside one another.
inline constexpr int64_t depth = 64;

// UTF-8 length of a name: of a model, a component, a tensor.
inline constexpr int64_t name_bytes = 200;

// UTF-8 length of a file's path.
inline constexpr int64_t path_bytes = 1000;

// Size of a file.
inline constexpr int64_t file_bytes = 1125899906842624;

// An integer in the shape of a tensor: channels, width of a context, heads * head_dim.
inline constexpr int64_t dimension = 16777216;

// K of height_K and width_K.
inline constexpr int64_t halvings = 30;

// unet.max_contexts.
inline constexpr int64_t contexts = 1048576;

// Tokens of a prompt.
inline constexpr int64_t tokens = 10000;

// A token id.
inline constexpr int64_t token_id = 2147483647;

// Native height and width of the latents.
inline constexpr int64_t sample_size = 16384;

// Pixels per latent.
inline constexpr int64_t downscale = 256;

// Magnitude of guidance_scale, of scaling_factor and its inverse, and of shift_factor.
inline constexpr double factor = 1000000.0;

// Training timesteps of a scheduler.
inline constexpr int64_t train_timesteps = 1048576;

// Steps of a scheduler table.
inline constexpr int64_t steps = 1048576;

// Latents that a step of a scheduler looks back at.
inline constexpr int64_t table_latents = 8;

// Noise predictions that a step of a scheduler looks back at.
inline constexpr int64_t table_noises = 16;

// Draws of noise that a step of a scheduler uses.
inline constexpr int64_t table_fresh_noises = 16;

// UNet evaluations of a scheduler step.
inline constexpr int64_t table_order = 4;

// UNet evaluations of a scheduler table.
inline constexpr int64_t table_evaluations = 4096;

}  // namespace ebca::internal::limits
