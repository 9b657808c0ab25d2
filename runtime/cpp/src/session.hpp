// From prompts and images to images of one size.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cancellation.hpp"
#include "conditioning/timeline.hpp"
#include "engine.hpp"
#include "images/latents.hpp"
#include "memory.hpp"
#include "request.hpp"
#include "sampling/graph_sampler.hpp"
#include "sampling/repaint.hpp"
#include "sampling/schedulers.hpp"

namespace ebca::internal {

// Seconds per stage.
struct Timings {
    double text_encoder = 0;
    double vae_encoder = 0;
    double open = 0;  // binding graphs, making buffers
    std::vector<double> unet_steps;
    double scheduler = 0;
    double vae = 0;
};

// What a call made; the rest is empty or 0.
struct Result {
    std::string task;
    std::string scheduler;
    int64_t images = 0;  // n
    int64_t height = 0;  // in pixels
    int64_t width = 0;
    Array latents;                // [n,C,h,w], scaled as the UNet takes them
    std::vector<uint8_t> pixels;  // [n,H,W,3]
    Array embeds;                 // [n,T,D]
    Array pooled_embeds;          // [n,P]
    Array noise;                  // [B,C,h,w], a prediction
    Array contexts;               // [B,S,T,D] after the last layer
    Array attention_energies;     // [m,L,B,S], terms of the energies of m evaluations and L layers
    Array norm_energies;          // [m,L,B,S]
    Array attention_maps;         // [n,T,h,w]
    std::vector<double> timesteps;
    std::vector<int64_t> seeds;  // one for all images or one each; empty if nothing was drawn
    Timings timings;

    // Energies and attention maps, as far as they are recorded.
    void take(const Telemetry& telemetry);
};

// UnsupportedError for a device on which this library records nothing.
void check_records(const Device& device);

// Makes images of one size. Owns its buffers; use from one thread at a time, except for `cancel`.
class Session {
  public:
    // height, width: in pixels; 0: the size the model was trained at. ParameterError for a size that the engine cannot
    // make.
    Session(std::shared_ptr<Engine> engine, int64_t height, int64_t width, int64_t batch);

    // ParameterError before anything is computed, EngineError, NumericalError, CancelledError.
    Result generate(const GenerateRequest& request);

    // The noise an image comes from: DDIM inversion, without guidance or context update. `generate` with these
    // latents, the scheduler "ddim", as many steps and the same prompt comes back to the image.
    Result invert(const InvertRequest& request);

    // Thread-safe. Whoever calls these functions gives them their turn: they do not take a request.
    Cancellation& cancellation() { return cancellation_; }
    // One evaluation of the UNet (denoiser.cpp).
    Result denoise(const DenoiseRequest& request);

    int64_t height() const { return height_; }
    int64_t width() const { return width_; }
    int64_t batch() const { return batch_; }
    // Of the latents [n,C,h,w].
    Shape latent_shape() const;

  private:
    // The buffers of one kind of call.
    struct Kept {
        Shape key;  // rows, contexts, tokens, groups of tokens
        std::unique_ptr<Executor> executor;
        std::unique_ptr<GraphSampler> sampler;  // null until it is used
    };

    // The steps of one generation: those of a scheduler's table or of RePaint.
    struct Steps {
        std::optional<SchedulerTable> table;
        std::optional<RePaintSchedule> repaint;
        std::string scheduler;
        Timeline timeline;
        Array subject_strengths;  // [m,2]
    };

    Result empty_result() const;
    Steps steps(const GenerateRequest& request, Task task, const RePaint& settings);
    std::shared_ptr<const LayerMasks> layer_masks_for(const Executor& executor, std::optional<Array> mask) const;
    Conditions conditions(const Prompts& prompts, const SizeConditions& sizes, const SizeConditions& negative) const;
    Executor& executor(const Conditions& conditions, int64_t groups = 0);
    GraphSampler* graph_sampler();
    SchedulerTable table(Task task, const std::string& scheduler, int64_t steps, const std::optional<double>& strength);
    void check_not_cancelled() const;
    // OutOfMemoryError if a call does not fit; call: with the sizes of an evaluation but for those of the latents.
    void check_memory(CallSizes call) const;
    void check_latents_given(const Array& latents) const;
    std::vector<uint8_t> decode(const Array& latents, bool tiled, const Source* source);

    std::shared_ptr<Engine> engine_;
    int64_t downscale_;
    int64_t height_;
    int64_t width_;
    int64_t batch_;
    std::list<Kept> executors_;  // the latest first
    Cancellation cancellation_;
};

}  // namespace ebca::internal
