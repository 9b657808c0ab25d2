#include "session.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <set>

#include "error.hpp"
#include "images/outputs.hpp"
#include "parameters.hpp"

namespace ebca::internal {
namespace {

// Goes from images to noise.
constexpr const char* kInverse = "ddim_inverse";

// Buffers are kept for this many kinds of calls (with and without guidance, numbers of editing prompts and subjects).
constexpr size_t kKeptExecutors = 2;

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

// One stream of random numbers for all images or one each.
std::vector<NormalStream> streams_of(const std::vector<int64_t>& seeds) {
    return {seeds.begin(), seeds.end()};
}

// Texts that are encoded together, at least.
int64_t distinct_texts(const Prompt& prompt) {
    return static_cast<int64_t>(std::set<std::string>(prompt.texts.begin(), prompt.texts.end()).size());
}

int64_t fewest_tokens(const Manifest& manifest, const Prompt& prompt) {
    if (prompt.embeds && prompt.embeds->shape.size() == 3) return prompt.embeds->size(1);
    return manifest.text_encoder ? manifest.text_encoder->max_length : 1;
}

std::vector<Prompt> prompts_of(const std::vector<Edit>& edits) {
    std::vector<Prompt> out;
    for (const Edit& edit : edits) out.push_back(edit.prompt);
    return out;
}

RePaint repaint_settings(const GenerateRequest& request) {
    RePaint settings = request.repaint.value_or(RePaint{});
    if (!(settings.eta >= 0 && settings.eta <= 1)) throw rules::eta_range(settings.eta);
    return settings;
}

// None: the conditional half only.
std::optional<double> guidance_scale(const GenerateRequest& request, const Manifest& manifest) {
    double scale = request.guidance_scale.value_or(manifest.guidance_scale);
    if (!std::isfinite(scale)) throw rules::finite_number("guidance_scale", scale);
    return scale > 1 ? std::optional(scale) : std::nullopt;
}

// What needs neither images nor steps.
void check_fields(const GenerateRequest& request, const Manifest& manifest, const Device& device) {
    check_clip_skip(request.conditioning.clip_skip, manifest);
    check_added_inputs(request.conditioning, request.sizes, request.negative_sizes, manifest.unet);
    check(request.subject, request.conditioning.prompt, manifest);
    if (request.record_energies || request.record_attention) check_records(device);
}

// What a call of so many rows computes, at least: longer texts become known when they are read.
CallSizes least_sizes(const GenerateRequest& request, const Manifest& manifest, int64_t rows) {
    const Prompt& prompt = request.conditioning.prompt;
    CallSizes call{{{"batch", rows}}};
    call.evaluation["contexts"] = 1 + static_cast<int64_t>(request.edits.size());
    call.evaluation["tokens"] = fewest_tokens(manifest, prompt);
    call.texts = distinct_texts(prompt);
    call.encodes = !request.images.empty();
    call.decodes = !request.latents_only;
    call.tiled = request.vae_tiling;
    return call;
}

}  // namespace

void check_records(const Device& device) {
    if (device.name() != "cpu") throw rules::telemetry_on_gpu();
}

void Result::take(const Telemetry& telemetry) {
    attention_energies = telemetry.attention_energies();
    norm_energies = telemetry.norm_energies();
    attention_maps = telemetry.attention_maps();
}

Session::Session(std::shared_ptr<Engine> engine, int64_t height, int64_t width, int64_t batch)
    : engine_(std::move(engine)), batch_(batch) {
    const Manifest& manifest = engine_->manifest();
    downscale_ = downscale(manifest);
    const ImageSize size = image_size(manifest, height, width, batch);
    height_ = size.height;
    width_ = size.width;
    // What any call needs; calls check the rest.
    check_memory({{{"batch", batch}, {"contexts", 1}, {"tokens", 1}}});
}

void Session::check_memory(CallSizes call) const {
    // A GPU refuses what does not fit.
    if (engine_->device().name() != "cpu") return;
    Shape latents = latent_shape();
    call.evaluation["height"] = latents[2];
    call.evaluation["width"] = latents[3];
    call.images = batch_;
    call.pixels = height_ * width_;
    check_host_memory(engine_->manifest(), engine_->backend().name() == "openvino", call,
                      text(batch_, batch_ == 1 ? " image of " : " images of ", height_, " x ", width_, " pixels"));
}

Shape Session::latent_shape() const {
    return {batch_, engine_->manifest().unet.out_channels, height_ / downscale_, width_ / downscale_};
}

Result Session::generate(const GenerateRequest& request) {
    const Manifest& manifest = engine_->manifest();
    if (!request.latents_only && !manifest.vae) throw rules::no_vae_to_decode();
    Task task = resolve_task(manifest, request);
    const RePaint settings = repaint_settings(request);
    const std::optional<double> scale = guidance_scale(request, manifest);
    const Conditioning& conditioning = request.conditioning;
    check_fields(request, manifest, engine_->device());
    const Steps steps = this->steps(request, task, settings);
    CallSizes call = least_sizes(request, manifest, scale ? 2 * batch_ : batch_);
    call.evaluations = steps.repaint ? steps.repaint->steps() : steps.table->evaluations();
    check_memory(call);
    std::optional<Source> source =
        load_source(*engine_, batch_, height_, width_, downscale_, request.images, request.masks);
    std::vector<int64_t> seeds = checked_seeds(request.seeds, batch_);
    std::vector<NormalStream> streams = streams_of(seeds);
    if (request.latents) check_latents_given(*request.latents);

    auto began = Clock::now();
    std::optional<SubjectInputs> subjects =
        resolve(*engine_, request.subject, conditioning.prompt, conditioning.reading, steps.subject_strengths,
                latent_shape(), {height_, width_});
    Prompts prompts =
        encode_prompts(*engine_, batch_, conditioning, prompts_of(request.edits), scale.has_value(), &cancellation_);
    if (subjects) subjects->lengthen(prompts.conditional.size(1));
    call.evaluation["tokens"] = prompts.conditional.size(1);
    check_memory(call);
    check_not_cancelled();
    auto texts_encoded = Clock::now();
    SamplerInputs inputs = prepare(*engine_, task, source, streams, latent_shape(), request.latents,
                                   steps.table ? &*steps.table : nullptr, request.vae_tiling, &cancellation_);
    check_not_cancelled();
    auto images_encoded = Clock::now();
    Executor& executor =
        this->executor(conditions(prompts, request.sizes, request.negative_sizes), subjects ? subjects->groups() : 0);
    if (!request.latents_only) engine_->warm_up_decoder(latent_shape(), request.vae_tiling);
    std::vector<Control> controls = steps.timeline.controls(
        prompts, request.norm_factor, layer_masks_for(executor, update_mask(source, task, settings)));
    const Array* extra_channels = inputs.extra_channels ? &*inputs.extra_channels : nullptr;
    Watch watch{request.on_step, &cancellation_};
    auto opened = began;
    const SubjectInputs* kept_apart = subjects ? &*subjects : nullptr;
    Telemetry telemetry(executor, batch_, request.record_energies, request.record_attention);
    auto on_host = [&] {
        NoisePredictor predictor(executor, scale, extra_channels, request.reset_edits, &cancellation_, kept_apart,
                                 &telemetry);
        engine_->with_room(
            [&] { predictor.prepare(controls, steps.repaint ? steps.repaint->timesteps() : steps.table->timesteps); });
        opened = Clock::now();
        Array latents = steps.repaint ? repaint(predictor, *steps.repaint, inputs.initial, *inputs.clean, *source->hole,
                                                streams, settings.eta, watch)
                                      : sample(predictor, *steps.table, inputs.initial, streams, watch);
        return Samples{std::move(latents), predictor.timesteps(), predictor.seconds()};
    };
    auto on_device = [&](GraphSampler& sampler) {
        bool carry_edits = !request.edits.empty() && !request.reset_edits;
        TableRun run{*steps.table, inputs.initial, controls, scale, extra_channels, carry_edits, kept_apart, streams};
        engine_->with_room([&] { sampler.prepare(run); });
        check_not_cancelled();
        opened = Clock::now();
        return sampler.run(run, watch);
    };
    GraphSampler* sampler = steps.table ? graph_sampler() : nullptr;
    Samples samples = sampler ? on_device(*sampler) : on_host();
    auto sampled = Clock::now();
    Result result = empty_result();
    result.latents = std::move(samples.latents);
    result.take(telemetry);
    if (!request.latents_only) {
        result.pixels = decode(result.latents, request.vae_tiling,
                               source && source->mask && request.composite ? &*source : nullptr);
    }
    result.task = to_string(task);
    result.scheduler = steps.scheduler;
    result.timesteps = std::move(samples.timesteps);
    // With latents that were given, noise is drawn only where an image is encoded, and by stochastic schedulers.
    if (!request.latents || source || (steps.table && steps.table->stochastic())) result.seeds = seeds;
    const std::vector<double>& in_unet = samples.seconds;
    result.timings = {seconds(began, texts_encoded),
                      seconds(texts_encoded, images_encoded),
                      seconds(images_encoded, opened),
                      in_unet,
                      seconds(opened, sampled) - std::accumulate(in_unet.begin(), in_unet.end(), 0.0),
                      seconds(sampled, Clock::now())};
    return result;
}

Result Session::invert(const InvertRequest& request) {
    const UNetSpec& unet = engine_->manifest().unet;
    if (unet.in_channels != unet.out_channels) throw rules::inversion_with_inpainting_model();
    if (request.images.empty() == !request.latents.has_value()) throw rules::inversion_input();
    check_clip_skip(request.conditioning.clip_skip, engine_->manifest());
    check_added_inputs(request.conditioning, request.sizes, {}, unet);
    int64_t tokens = fewest_tokens(engine_->manifest(), request.conditioning.prompt);
    check_memory({{{"batch", batch_}, {"contexts", 1}, {"tokens", tokens}}});
    engine_->verify_tables();
    SchedulerTable table = load_table(engine_->directory(), kInverse, request.steps);
    if (request.latents) check_latents_given(*request.latents);
    Adjust adjust;
    if (request.regularize) {
        require_noise_prediction(engine_->manifest(), "regularize");
        adjust = request.regularize->start(batch_);
    }
    auto began = Clock::now();
    Warn warn = [&](const std::string& text) { engine_->log(LogLevel::warning, text); };
    Array clean =
        request.latents
            ? *request.latents
            : engine_
                  ->encode_image(per_image("images", load_images(request.images, height_, width_, warn), batch_),
                                 request.vae_tiling, &cancellation_)
                  .first;
    check_not_cancelled();
    auto images_encoded = Clock::now();
    Prompts prompts = encode_prompts(*engine_, batch_, request.conditioning, {}, false, &cancellation_);
    check_not_cancelled();
    auto texts_encoded = Clock::now();
    Executor& executor = this->executor(conditions(prompts, request.sizes, {}));
    Timeline timeline = Timeline::make({}, {}, {}, request.steps, table.evaluations(), table.name);
    std::vector<Control> controls = timeline.controls(prompts, 1.0, nullptr);
    NoisePredictor predictor(executor, std::nullopt, nullptr, false, &cancellation_);
    engine_->with_room([&] { predictor.prepare(controls, table.timesteps); });
    auto opened = Clock::now();
    Result result = empty_result();
    std::vector<NormalStream> streams;  // the inverse draws no noise
    result.latents = sample(predictor, table, clean, streams, {request.on_step, &cancellation_}, adjust);
    result.task = "inversion";
    result.scheduler = table.name;
    result.timesteps = predictor.timesteps();
    const std::vector<double>& in_unet = predictor.seconds();
    result.timings = {seconds(images_encoded, texts_encoded),
                      seconds(began, images_encoded),
                      seconds(texts_encoded, opened),
                      in_unet,
                      seconds(opened, Clock::now()) - std::accumulate(in_unet.begin(), in_unet.end(), 0.0),
                      0};
    return result;
}

void Session::check_not_cancelled() const {
    if (cancellation_.requested()) throw rules::cancelled_early();
}

Result Session::empty_result() const {
    Result result;
    result.images = batch_;
    result.height = height_;
    result.width = width_;
    return result;
}

Session::Steps Session::steps(const GenerateRequest& request, Task task, const RePaint& settings) {
    const Manifest& manifest = engine_->manifest();
    engine_->verify_tables();
    int64_t usual = manifest.schedulers.default_steps ? manifest.schedulers.default_steps : defaults::steps;
    int64_t asked_steps = request.steps == defaults::generate_params::steps ? usual : request.steps;
    Steps out;
    if (task == Task::repaint) {
        if (!request.scheduler.empty()) throw rules::scheduler_with_repaint(request.scheduler);
        require_noise_prediction(manifest, "RePaint");
        out.repaint.emplace(asked_steps, settings, load_alphas_cumprod(engine_->directory()));
        out.scheduler = "RePaint";
    } else {
        out.table = table(task, request.scheduler, asked_steps, request.strength);
        out.scheduler = out.table->name;
    }
    if (manifest.unet.max_contexts && static_cast<int64_t>(request.edits.size()) > *manifest.unet.max_contexts - 1) {
        throw rules::edits_too_many(request.edits.size(), *manifest.unet.max_contexts - 1);
    }
    // Schedules count evaluations, and both evaluations of a step count as a step.
    int64_t steps = out.repaint ? out.repaint->steps() : out.table->remaining() * out.table->order;
    int64_t evaluations = out.repaint ? steps : out.table->evaluations();
    out.timeline =
        Timeline::make(request.gamma_attn, request.gamma_norm, request.edits, steps, evaluations, out.scheduler);
    out.subject_strengths = strengths(request.subject, steps, evaluations, out.scheduler);
    return out;
}

// A mask [n or 1,1,h,w] for every layer; null without one.
std::shared_ptr<const LayerMasks> Session::layer_masks_for(const Executor& executor, std::optional<Array> mask) const {
    if (!mask) return nullptr;
    if (mask->size(0) > 1) {
        // Both halves of the rows are masked.
        Array both({executor.sizes().at("batch"), 1, mask->size(2), mask->size(3)});
        for (int64_t row = 0; row < both.size(0); ++row) {
            std::copy_n(mask->row(row % mask->size(0)), mask->stride(), both.row(row));
        }
        mask = std::move(both);
    }
    const std::vector<LayerSpec>& layers = engine_->manifest().unet.layers;
    return std::make_shared<const LayerMasks>(layer_masks(*mask, layers, executor.sizes()));
}

SchedulerTable Session::table(Task task, const std::string& scheduler, int64_t steps,
                              const std::optional<double>& strength) {
    const SchedulerSection& section = engine_->manifest().schedulers;
    int64_t skipped = task == Task::image_to_image ? skipped_steps(strength, steps) : 0;
    std::string name = !scheduler.empty() ? scheduler : skipped ? section.image_to_image : section.standard;
    std::string key = find_scheduler(name, section.tables);
    if (key == kInverse || key.empty()) {
        std::string choices;
        for (const auto& [choice, table] : section.tables) {
            if (choice != kInverse) choices += (choices.empty() ? "" : ", ") + choice;
        }
        throw unknown_scheduler(section, name, choices);
    }
    SchedulerTable table = load_table(engine_->directory(), key, steps);
    return task == Task::image_to_image ? table.after(skipped) : table;
}

Conditions Session::conditions(const Prompts& prompts, const SizeConditions& sizes,
                               const SizeConditions& negative) const {
    const UNetSpec& unet = engine_->manifest().unet;
    return {prompts.contexts(), prompts.text_embeds(),
            time_ids(unet, batch_, prompts.unconditional.has_value(), sizes, negative, {height_, width_})};
}

Executor& Session::executor(const Conditions& conditions, int64_t groups) {
    const Array& contexts = conditions.contexts;
    Shape key{contexts.size(0), contexts.size(1), contexts.size(2), groups};
    auto found = std::find_if(executors_.begin(), executors_.end(), [&](const Kept& kept) { return kept.key == key; });
    if (found == executors_.end()) {
        while (executors_.size() >= kKeptExecutors) executors_.pop_back();
        Shape latents = latent_shape();
        Sizes sizes{
            {"batch", key[0]}, {"contexts", key[1]}, {"tokens", key[2]}, {"height", latents[2]}, {"width", latents[3]}};
        executors_.push_front({key, engine_->executor(sizes, groups), nullptr});
    } else {
        executors_.splice(executors_.begin(), executors_, found);
    }
    Executor& executor = *executors_.front().executor;
    if (executor.contexts().shape != contexts.shape) {
        throw EngineError(text("the text encoder makes contexts ", to_string(contexts.shape), ", the UNet takes ",
                               to_string(executor.contexts().shape)),
                          "export the engine again");
    }
    executor.set_conditions(conditions);
    return executor;
}

// Runs the executor that was opened last without the host; null if its device cannot.
GraphSampler* Session::graph_sampler() {
    if (!engine_->device().graphs()) return nullptr;
    Kept& kept = executors_.front();
    if (!kept.sampler) kept.sampler = std::make_unique<GraphSampler>(*kept.executor, engine_->device(), batch_);
    return kept.sampler.get();
}

void Session::check_latents_given(const Array& latents) const {
    if (latents.shape != latent_shape()) {
        throw rules::latents_shape(to_string(latents.shape), to_string(latent_shape()));
    }
    if (!all_finite(latents.values.data(), static_cast<int64_t>(latents.values.size()))) {
        throw rules::latents_not_finite();
    }
}

std::vector<uint8_t> Session::decode(const Array& latents, bool tiled, const Source* source) {
    // Memory peaks with the decoder's activations, so the UNet's weights are dropped first.
    engine_->forget_weights();
    Array images = to_unit_range(engine_->decode(latents, tiled, &cancellation_));
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

}  // namespace ebca::internal
