#include "session.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <random>

#include "conditioning/timeline.hpp"
#include "error.hpp"
#include "parameters.hpp"
#include "sampling/repaint.hpp"

namespace ebca {
namespace {

// Goes from pictures to noise.
constexpr const char* kInverse = "ddim_inverse";

// Buffers for more kinds of calls (with and without guidance, numbers of editing prompts) are made anew.
constexpr size_t kKeptExecutors = 2;

constexpr int64_t kLargestSide = 1 << 16;
constexpr int64_t kMostPictures = 1 << 12;

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

int64_t checked_side(const char* name, int64_t given, int64_t native, int64_t downscale) {
    int64_t side = given ? given : native;
    if (side < downscale || side % downscale || side > kLargestSide) {
        int64_t low = std::clamp<int64_t>(side / downscale, 1, kLargestSide / downscale - 1) * downscale;
        throw rules::side_not_multiple(name, side, downscale, low, low + downscale);
    }
    return side;
}

// One stream of random numbers for all pictures or one each.
std::vector<NormalStream> streams_of(const std::vector<int64_t>& seeds) {
    return {seeds.begin(), seeds.end()};
}

std::vector<int64_t> checked_seeds(const std::vector<int64_t>& seeds, int64_t batch) {
    if (seeds.empty()) return {static_cast<int64_t>(std::random_device{}())};
    if (seeds.size() != 1 && static_cast<int64_t>(seeds.size()) != batch) {
        throw rules::seed_count(seeds.size(), batch);
    }
    return seeds;
}

std::vector<Prompt> prompts_of(const std::vector<Edit>& edits) {
    std::vector<Prompt> out;
    for (const Edit& edit : edits) out.push_back(edit.prompt);
    return out;
}

}  // namespace

Session::Session(std::shared_ptr<Engine> engine, int64_t height, int64_t width, int64_t batch)
    : engine_(std::move(engine)), batch_(batch) {
    const Manifest& manifest = engine_->manifest();
    downscale_ = manifest.vae ? manifest.vae->downscale : defaults::downscale;
    int64_t native = manifest.unet.sample_size * downscale_;
    height_ = checked_side("height", height, native, downscale_);
    width_ = checked_side("width", width, native, downscale_);
    if (batch < 1 || batch > kMostPictures) throw rules::batch(batch);
}

Shape Session::latent_shape() const {
    return {batch_, engine_->manifest().unet.out_channels, height_ / downscale_, width_ / downscale_};
}

Result Session::generate(const GenerateOptions& options) {
    cancelled_ = false;
    const Manifest& manifest = engine_->manifest();
    if (!options.latents_only && !manifest.vae) {
        throw rules::no_vae_to_decode();
    }
    Task task = infer(manifest, !options.image.empty(), !options.mask.empty(), options.strength.has_value(),
                      options.repaint.has_value());
    RePaint settings = options.repaint.value_or(RePaint{});
    if (!(settings.eta >= 0 && settings.eta <= 1)) {
        throw rules::eta_range(settings.eta);
    }
    double guidance_scale = options.guidance_scale.value_or(manifest.guidance_scale);
    if (!std::isfinite(guidance_scale)) {
        throw rules::finite_number("guidance_scale", guidance_scale);
    }
    bool guided = guidance_scale > 1;
    engine_->verify_tables();
    std::optional<SchedulerTable> table;
    std::optional<RePaintPlan> plan;
    if (task == Task::repaint) {
        if (!options.scheduler.empty()) {
            throw rules::scheduler_with_repaint(options.scheduler);
        }
        require_noise_prediction(manifest, "RePaint");
        plan.emplace(options.steps, settings, load_alphas_cumprod(engine_->directory()));
    } else {
        table = this->table(task, options.scheduler, options.steps, options.strength);
    }
    if (manifest.unet.max_contexts && static_cast<int64_t>(options.edits.size()) > *manifest.unet.max_contexts - 1) {
        throw rules::edits_too_many(options.edits.size(), *manifest.unet.max_contexts - 1);
    }
    const std::string scheduler = plan ? "RePaint" : table->name;
    Timeline timeline =
        Timeline::plan(options.gamma_attn, options.gamma_norm, options.edits, plan ? plan->steps() : table->remaining(),
                       plan ? plan->steps() : table->evaluations(), scheduler);
    std::optional<Source> source =
        load_source(*engine_, batch_, height_, width_, downscale_, options.image, options.mask);
    std::vector<int64_t> seeds = checked_seeds(options.seeds, batch_);
    std::vector<NormalStream> streams = streams_of(seeds);
    if (options.latents) check_latents_given(*options.latents);

    auto began = Clock::now();
    Prompts prompts = encode_prompts(*engine_, batch_, options.prompt, options.negative_prompt,
                                     prompts_of(options.edits), options.token_weights, guided);
    check_not_cancelled();
    auto encoded = Clock::now();
    Seen seen = prepare(*engine_, task, source, streams, latent_shape(), options.latents, table ? &*table : nullptr);
    check_not_cancelled();
    auto known = Clock::now();
    Executor& executor = this->executor(prompts.contexts());
    std::shared_ptr<const LayerMasks> masks;
    if (std::optional<Array> mask = update_mask(source, task, settings)) {
        // Both halves of the rows are masked.
        if (mask->size(0) > 1) {
            Array both({executor.sizes().at("batch"), 1, mask->size(2), mask->size(3)});
            for (int64_t row = 0; row < both.size(0); ++row) {
                std::copy_n(mask->row(row % mask->size(0)), mask->stride(), both.row(row));
            }
            mask = std::move(both);
        }
        masks = std::make_shared<const LayerMasks>(layer_masks(*mask, manifest.unet.layers, executor.sizes()));
    }
    std::vector<Control> controls = timeline.controls(prompts, options.norm_factor, masks);
    for (const Control& control : controls) executor.bind(control.variant());
    auto opened = Clock::now();
    NoisePredictor predictor(executor, guided ? std::optional(guidance_scale) : std::nullopt,
                             seen.channels ? &*seen.channels : nullptr, options.reset_edits, &cancelled_);
    Watch watch{options.on_step, &cancelled_};
    Result result;
    result.latents =
        plan ? repaint(predictor, *plan, seen.start, *seen.known, *source->hole, controls, streams, settings.eta, watch)
             : sample(predictor, *table, seen.start, controls, watch);
    auto sampled = Clock::now();
    if (!options.latents_only) {
        result.pixels = decode(result.latents, source && source->mask && options.composite ? &*source : nullptr);
    }
    result.task = to_string(task);
    result.scheduler = scheduler;
    result.timesteps = predictor.timesteps();
    // With latents that were given, a random seed was not used.
    if (!options.seeds.empty() || !options.latents || source) result.seeds = seeds;
    const std::vector<double>& steps = predictor.seconds();
    double in_unet = std::accumulate(steps.begin(), steps.end(), 0.0);
    result.timings = {seconds(began, encoded),
                      seconds(encoded, known),
                      seconds(known, opened),
                      steps,
                      seconds(opened, sampled) - in_unet,
                      seconds(sampled, Clock::now())};
    return result;
}

Result Session::invert(const InvertOptions& options) {
    cancelled_ = false;
    const UNetSpec& unet = engine_->manifest().unet;
    if (unet.in_channels != unet.out_channels) {
        throw rules::inversion_with_inpainting_model();
    }
    if (options.image.empty() == !options.latents.has_value()) {
        throw rules::inversion_input();
    }
    engine_->verify_tables();
    SchedulerTable table = load_table(engine_->directory(), kInverse, options.steps);
    if (options.latents) check_latents_given(*options.latents);
    Adjust adjust;
    if (options.regularize) {
        require_noise_prediction(engine_->manifest(), "regularize");
        adjust = options.regularize->start(batch_);
    }
    auto began = Clock::now();
    Array clean =
        options.latents
            ? *options.latents
            : engine_->encode_image(per_picture("images", load_pictures(options.image, height_, width_), batch_)).first;
    check_not_cancelled();
    auto known = Clock::now();
    Prompts prompts = encode_prompts(*engine_, batch_, options.prompt, {}, {}, {}, false);
    check_not_cancelled();
    auto encoded = Clock::now();
    Executor& executor = this->executor(prompts.contexts());
    Timeline timeline = Timeline::plan({}, {}, {}, options.steps, table.evaluations(), table.name);
    std::vector<Control> controls = timeline.controls(prompts, 1.0, nullptr);
    executor.bind(controls.front().variant());
    auto opened = Clock::now();
    NoisePredictor predictor(executor, std::nullopt, nullptr, false, &cancelled_);
    Result result;
    result.latents = sample(predictor, table, clean, controls, {options.on_step, &cancelled_}, adjust);
    result.task = "inversion";
    result.scheduler = table.name;
    result.timesteps = predictor.timesteps();
    const std::vector<double>& steps = predictor.seconds();
    double in_unet = std::accumulate(steps.begin(), steps.end(), 0.0);
    result.timings = {seconds(known, encoded),
                      seconds(began, known),
                      seconds(encoded, opened),
                      steps,
                      seconds(opened, Clock::now()) - in_unet,
                      0};
    return result;
}

SchedulerTable Session::table(Task task, const std::string& scheduler, int64_t steps,
                              const std::optional<double>& strength) {
    const SchedulerSection& section = engine_->manifest().schedulers;
    int64_t skipped = task == Task::image_to_image ? begin(strength, steps) : 0;
    std::string name = !scheduler.empty() ? scheduler : skipped ? std::string("ddim") : section.standard;
    std::string key = normalise_name(name);
    if (key == kInverse || !section.tables.count(key)) {
        std::string choices;
        for (const auto& [choice, table] : section.tables) {
            if (choice != kInverse) choices += (choices.empty() ? "" : ", ") + choice;
        }
        throw rules::scheduler_unknown(name, choices);
    }
    SchedulerTable table = load_table(engine_->directory(), key, steps);
    return task == Task::image_to_image ? table.after(skipped) : table;
}

Executor& Session::executor(const Array& contexts) {
    Shape key{contexts.size(0), contexts.size(1), contexts.size(2)};
    auto found =
        std::find_if(executors_.begin(), executors_.end(), [&](const Kept& kept) { return kept.first == key; });
    if (found == executors_.end()) {
        while (executors_.size() >= kKeptExecutors) executors_.pop_back();
        Shape latents = latent_shape();
        Sizes sizes{
            {"batch", key[0]}, {"contexts", key[1]}, {"tokens", key[2]}, {"height", latents[2]}, {"width", latents[3]}};
        executors_.emplace_front(key, engine_->executor(sizes));
    } else {
        executors_.splice(executors_.begin(), executors_, found);
    }
    Executor& executor = *executors_.front().second;
    if (executor.contexts().shape != contexts.shape) {
        throw EngineError(text("the text encoder makes contexts ", to_string(contexts.shape), ", the UNet takes ",
                               to_string(executor.contexts().shape)),
                          "export the engine again");
    }
    std::copy(contexts.values.begin(), contexts.values.end(), executor.contexts().floats());
    return executor;
}

void Session::check_latents_given(const Array& latents) const {
    if (latents.shape != latent_shape()) {
        throw rules::latents_shape(to_string(latents.shape), to_string(latent_shape()));
    }
    if (!all_finite(latents.values.data(), static_cast<int64_t>(latents.values.size()))) {
        throw rules::latents_not_finite();
    }
}

void Session::check_not_cancelled() const {
    if (cancelled_) throw rules::cancelled_early();
}

std::vector<uint8_t> Session::decode(const Array& latents, const Source* source) {
    check_not_cancelled();
    // The decoder's activations are the peak of a run; the UNet's weights need not lie beside them.
    engine_->forget_weights();
    Array images = to_unit_range(engine_->decode(latents));
    if (!all_finite(images.values.data(), static_cast<int64_t>(images.values.size()))) {
        throw rules::image_not_finite();
    }
    for (int64_t n = 0; source && n < images.size(0); ++n) {
        const float* hole = source->mask->row(source->mask->size(0) == 1 ? 0 : n);
        for (int64_t i = 0; i < images.stride(); ++i) {
            if (!(hole[i / 3] > 0)) images.row(n)[i] = source->pixels.row(n)[i];
        }
    }
    return to_bytes(images);
}

}  // namespace ebca
