// From prompts and pictures to pictures of one size.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "conditioning/edits.hpp"
#include "conditioning/prompts.hpp"
#include "conditioning/schedules.hpp"
#include "engine.hpp"
#include "images/images.hpp"
#include "request.hpp"
#include "sampling/inversion.hpp"
#include "sampling/sampler.hpp"

namespace ebca {

// Without `image`: text to image. With `image`: image to image from a noise level that `strength` sets. With `mask`
// too: inpainting, by the model itself where it was trained for that, by RePaint otherwise. ebca.h describes each
// field.
struct GenerateOptions {
    Prompt prompt;
    Prompt negative_prompt;
    int64_t steps = 50;
    std::optional<double> guidance_scale;
    std::string scheduler;
    std::vector<int64_t> seeds;
    Schedule gamma_attn;
    Schedule gamma_norm;
    std::vector<TokenWeight> token_weights;
    double norm_factor = 1;
    std::vector<Edit> edits;
    bool reset_edits = false;
    std::vector<Picture> image;
    std::vector<Picture> mask;
    std::optional<double> strength;
    std::optional<RePaint> repaint;
    bool composite = true;
    std::optional<Array> latents;
    bool latents_only = false;
    OnStep on_step;
};

struct InvertOptions {
    Prompt prompt;
    std::vector<Picture> image;    // or
    std::optional<Array> latents;  // of the picture
    int64_t steps = 50;
    std::optional<NoiseRegularization> regularize;
    OnStep on_step;
};

// Seconds per stage.
struct Timings {
    double text_encoder = 0;
    double vae_encoder = 0;
    double open = 0;  // binding graphs, making buffers
    std::vector<double> unet_steps;
    double scheduler = 0;
    double vae = 0;
};

struct Result {
    std::string task;
    std::string scheduler;
    Array latents;                // [n,C,h,w], scaled as the UNet sees them
    std::vector<uint8_t> pixels;  // [n,H,W,3], empty where latents alone were asked for
    std::vector<double> timesteps;
    std::vector<int64_t> seeds;  // one for all pictures or one each; none where nothing was drawn
    Timings timings;
};

// Makes pictures of one size. Owns its buffers; use from one thread at a time, except for `cancel`.
class Session {
  public:
    // height, width: in pixels; 0: the size the model was trained at. ParameterError for a size it cannot make.
    Session(std::shared_ptr<Engine> engine, int64_t height, int64_t width, int64_t batch);

    // ParameterError before anything is computed, EngineError, NumericalError, CancelledError.
    Result generate(const GenerateOptions& options);

    // The noise a picture comes from: DDIM inversion, without guidance or context update. `generate` with these
    // latents, the scheduler "ddim", as many steps and the same prompt comes back to the picture.
    Result invert(const InvertOptions& options);

    // Stop the call that is running now in another thread; without one, nothing happens.
    void cancel() { cancelled_ = true; }

    int64_t height() const { return height_; }
    int64_t width() const { return width_; }
    int64_t batch() const { return batch_; }
    // Of the latents [n,C,h,w].
    Shape latent_shape() const;

  private:
    // (rows, contexts, tokens), and its buffers.
    using Kept = std::pair<Shape, std::unique_ptr<Executor>>;

    Executor& executor(const Array& contexts);
    SchedulerTable table(Task task, const std::string& scheduler, int64_t steps, const std::optional<double>& strength);
    void check_latents_given(const Array& latents) const;
    void check_not_cancelled() const;
    std::vector<uint8_t> decode(const Array& latents, const Source* source);

    std::shared_ptr<Engine> engine_;
    int64_t downscale_;
    int64_t height_;
    int64_t width_;
    int64_t batch_;
    std::list<Kept> executors_;  // the latest first
    std::atomic<bool> cancelled_{false};
};

}  // namespace ebca
