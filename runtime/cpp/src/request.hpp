// What a session is asked to do, and the rules about which parameters go together.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "conditioning/added_inputs.hpp"
#include "conditioning/edits.hpp"
#include "conditioning/prompts.hpp"
#include "conditioning/schedules.hpp"
#include "conditioning/subjects.hpp"
#include "contract/manifest.hpp"
#include "contract/tensor.hpp"
#include "execution/executor.hpp"
#include "images/inputs.hpp"
#include "parameters.hpp"
#include "sampling/inversion.hpp"
#include "sampling/repaint.hpp"
#include "sampling/sampler.hpp"

namespace ebca::internal {

// What `Session::generate` is asked for. Without images: text to image. With images: image to image from a noise level
// that `strength` sets. With masks too: inpainting, by the model if it was trained for that, by RePaint otherwise.
// ebca.h describes each field.
struct GenerateRequest {
    Conditioning conditioning;
    SizeConditions sizes;
    SizeConditions negative_sizes;
    int64_t steps = defaults::generate_params::steps;
    std::optional<double> guidance_scale;
    std::string scheduler;
    std::vector<int64_t> seeds;
    Schedule gamma_attn;
    Schedule gamma_norm;
    double norm_factor = defaults::generate_params::norm_factor;
    std::vector<Edit> edits;
    bool reset_edits = false;
    Subjects subject;
    std::vector<ImageView> images;
    std::vector<ImageView> masks;
    std::optional<double> strength;
    std::optional<RePaint> repaint;
    bool composite = defaults::generate_params::composite != 0;
    std::optional<Array> latents;
    bool latents_only = false;
    bool vae_tiling = false;
    bool record_energies = false;
    bool record_attention = false;
    OnStep on_step;
};

// What `Session::invert` is asked for: images, or their latents.
struct InvertRequest {
    Conditioning conditioning;  // without a negative prompt
    SizeConditions sizes;
    std::vector<ImageView> images;
    std::optional<Array> latents;
    int64_t steps = defaults::invert_params::steps;
    std::optional<NoiseRegularization> regularize;
    bool vae_tiling = false;
    OnStep on_step;
};

// What `Session::denoise` is asked for, once `check_denoise` has looked at it.
struct DenoiseRequest {
    Array sample;                   // [B,channels,h,w]
    std::vector<double> timesteps;  // one for all rows or one each
    Conditions conditions;
    EnergyControl control;
    bool record_energies = false;
};

// Shapes of what `Session::denoise` is given; empty ones: not given.
struct DenoiseShapes {
    Shape sample, contexts, text_embeds, time_ids;
};

// ParameterError unless they fit the UNet and each other. latents: of the session [n,C,h,w].
void check_denoise(const DenoiseShapes& shapes, const std::vector<double>& timesteps, const UNetSpec& unet,
                   const Shape& latents);

// In pixels.
struct ImageSize {
    int64_t height, width;
};

// Pixels per latent.
int64_t downscale(const Manifest& manifest);

// The size of `batch` images; height, width: 0: as the model was trained. ParameterError for what an engine cannot
// make.
ImageSize image_size(const Manifest& manifest, int64_t height, int64_t width, int64_t batch);

// One seed for all images or one each; a random one if none is given. ParameterError for another number.
std::vector<int64_t> checked_seeds(const std::vector<int64_t>& seeds, int64_t batch);

// Follows from the parameters and from the UNet.
enum class Task { text_to_image, image_to_image, inpainting, repaint };

const char* to_string(Task task);

// The task that a request asks for. ParameterError: inputs that do not go together; EngineError: inputs that this model
// cannot use.
Task resolve_task(const Manifest& manifest, const GenerateRequest& request);

// ParameterError for layers of the text encoder that there are not; EngineError for a directory without them.
void check_clip_skip(int64_t clip_skip, const Manifest& manifest);

// How many of the steps image to image skips, as diffusers counts them. ParameterError: out of range, or so small that
// no step is left.
int64_t skipped_steps(const std::optional<double>& strength, int64_t steps);

// ParameterError if `what` cannot work because the model predicts something other than noise.
void require_noise_prediction(const Manifest& manifest, const char* what);

}  // namespace ebca::internal
