// The parameter structs of ebca.h to the library's own.
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/arguments.hpp"
#include "api/callbacks.hpp"
#include "api/structs.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

constexpr size_t kMostItems = 1 << 20;

std::string string(const char* given) {
    return given ? given : "";
}

std::optional<double> given_number(double value) {
    return std::isnan(value) ? std::nullopt : std::optional<double>(value);
}

Schedule schedule(const ebca_schedule& given, const std::string& name) {
    check_reserved(given, name);
    if (given.kind < EBCA_SCHEDULE_CONSTANT || given.kind > EBCA_SCHEDULE_VALUES) {
        throw rules::schedule_kind(name, given.kind);
    }
    Schedule out{static_cast<Schedule::Kind>(given.kind), given.value, given.parameter, {}};
    if (given.kind == EBCA_SCHEDULE_VALUES) {
        check_list(given.values, given.count, name + ".values", kMostItems);
        out.values.assign(given.values, given.values + given.count);
    }
    return out;
}

OnStep on_step(ebca_step_callback callback, void* data) {
    if (!callback) return {};
    return [callback, data](const StepInfo& info) {
        ebca_step_info out{};
        out.struct_size = sizeof out;
        out.index = info.index;
        out.total = info.total;
        out.timestep = info.timestep;
        out.latents = tensor(info.latents);
        out.contexts.data = info.contexts.floats();
        out.contexts.rank = 4;
        std::copy_n(info.contexts.shape.begin(), 4, out.contexts.shape);
        out.unit_scale = info.unit_scale;
        return called("on_step", callback, &out, data) != 0;
    };
}

std::vector<Edit> edits(const Arguments& arguments, const ebca_edit* given, size_t count) {
    arguments.check_edits(given, count);
    std::vector<Edit> out;
    // The caller's struct may be smaller than this library's.
    const auto* at = reinterpret_cast<const std::byte*>(given);
    for (size_t i = 0; i < count; ++i) {
        const auto* entry = reinterpret_cast<const ebca_edit*>(at);
        ebca_edit edit = checked(entry, "ebca_edit");
        const std::string name = text("edits[", i, "].");
        out.push_back({arguments.prompt(edit.prompt, name + "prompt"), edit.direction,
                       schedule(edit.alpha, name + "alpha"), schedule(edit.gamma_attn, name + "gamma_attn"),
                       schedule(edit.gamma_norm, name + "gamma_norm")});
        at += entry->struct_size;
    }
    return out;
}

Subjects subjects(const ebca_generate_params& params) {
    Subjects out;
    check_list(params.subjects, params.subject_count, "subjects", kMostItems);
    out.phrases = texts_of(params.subjects, params.subject_count, "subjects");
    check_list(params.regions, params.region_count, "regions", kMostItems);
    for (size_t i = 0; i < params.region_count; ++i) {
        const ebca_region& one = params.regions[i];
        const std::string name = text("regions[", i, "]");
        check_reserved(one, name);
        out.regions.push_back({needed_text(one.subject, name + ".subject"), image_of(one.mask, name + ".mask")});
    }
    out.exclusion = schedule(params.subject_exclusion, "subject_exclusion");
    out.balance = schedule(params.subject_balance, "subject_balance");
    out.window = params.subject_window;
    return out;
}

SizeConditions size_conditions(const ebca_size_conditions& given, const std::string& name) {
    check_reserved(given, name);
    auto size = [](int32_t height, int32_t width) {
        bool is_given = height != 0 || width != 0;
        return is_given ? std::optional(SizeConditions::Pair{height, width}) : std::nullopt;
    };
    return {size(given.original_height, given.original_width),
            {given.crop_top, given.crop_left},
            size(given.target_height, given.target_width)};
}

// Before anything else is read: where the number differs, what follows it may too.
void check_abi(const ebca_engine_params* given) {
    constexpr size_t read = offsetof(ebca_engine_params, abi_version) + sizeof given->abi_version;
    if (given->struct_size < read || given->abi_version == 0 || given->abi_version == EBCA_ABI_VERSION) return;
    throw rules::abi_version(given->abi_version, EBCA_ABI_VERSION, ebca_version());
}

}  // namespace

EngineOptions engine_options(const ebca_engine_params* given) {
    check_abi(needed(given, "ebca_engine_params"));
    const ebca_engine_params params = checked(given, "ebca_engine_params");
    if (params.path && params.read) throw rules::path_and_read();
    if (!params.read && (!params.path || !*params.path)) throw rules::path_missing();
    EngineOptions options;
    options.path = platform::to_path(string(params.path));
    if (params.read) {
        options.read = [call = params.read, data = params.read_data](const std::string& file, int64_t offset,
                                                                     void* buffer, int64_t size) {
            return called("read", call, file.c_str(), offset, buffer, size, data);
        };
    }
    options.device = params.device ? params.device : "cpu";
    options.cpu.backend = string(params.backend);
    options.cpu.precision = string(params.precision);
    options.cpu.threads = params.threads;
    options.cpu.ort_library = string(params.onnxruntime_library);
    options.cpu.openvino_library = string(params.openvino_library);
    options.gpu.stream = params.cuda_stream;
    options.gpu.kernels = string(params.kernels_dir);
    options.gpu.tensorrt_rtx_library = string(params.tensorrt_rtx_library);
    options.cache = platform::to_path(string(params.cache_dir));
    if (params.on_prepare) {
        options.on_prepare = [call = params.on_prepare, data = params.on_prepare_data](int64_t done, int64_t total,
                                                                                       const std::string& component) {
            called("on_prepare", call, done, total, component.c_str(), data);
        };
    }
    if (params.log) {
        options.log = [call = params.log, data = params.log_data](LogLevel level, const std::string& message) {
            called("log", call, static_cast<ebca_log_level>(level), message.c_str(), data);
        };
    }
    return options;
}

GenerateRequest generate_request(const Engine& engine, const Session& session, const ebca_generate_params* given) {
    const ebca_generate_params params = checked(needed(given, "ebca_generate_params"), "ebca_generate_params");
    const Arguments arguments(engine, session);
    GenerateRequest out;
    Conditioning& conditioning = out.conditioning;
    conditioning.prompt = arguments.prompt(params.prompt, "prompt");
    conditioning.negative_prompt = arguments.prompt(params.negative_prompt, "negative_prompt");
    conditioning.prompt.texts_2 = arguments.second(params.prompt_2, "prompt_2");
    conditioning.negative_prompt.texts_2 = arguments.second(params.negative_prompt_2, "negative_prompt_2");
    conditioning.prompt.pooled = arguments.pooled(params.pooled_prompt_embeds, "pooled_prompt_embeds");
    conditioning.negative_prompt.pooled =
        arguments.pooled(params.negative_pooled_prompt_embeds, "negative_pooled_prompt_embeds");
    out.sizes = size_conditions(params.size_conditions, "size_conditions");
    out.negative_sizes = size_conditions(params.negative_size_conditions, "negative_size_conditions");
    out.steps = params.steps;
    out.guidance_scale = given_number(params.guidance_scale);
    out.scheduler = string(params.scheduler);
    out.seeds = arguments.seeds(params.seeds, params.seed_count);
    out.gamma_attn = schedule(params.gamma_attn, "gamma_attn");
    out.gamma_norm = schedule(params.gamma_norm, "gamma_norm");
    check_list(params.token_weights, params.token_weight_count, "token_weights", kMostItems);
    for (size_t i = 0; i < params.token_weight_count; ++i) {
        const ebca_token_weight& one = params.token_weights[i];
        check_reserved(one, text("token_weights[", i, "]"));
        conditioning.token_weights.push_back(
            {one.word ? std::optional(text_of(one.word, text("token_weights[", i, "].word"))) : std::nullopt,
             one.position, one.factor});
    }
    out.norm_factor = params.norm_factor;
    out.edits = edits(arguments, params.edits, params.edit_count);
    out.reset_edits = params.reset_edits != 0;
    out.images = arguments.images(params.images, params.image_count, "images");
    out.masks = arguments.images(params.masks, params.mask_count, "masks");
    out.strength = given_number(params.strength);
    if (params.repaint) {
        ebca_repaint_params chosen = checked(params.repaint, "ebca_repaint_params");
        out.repaint = RePaint{chosen.jump_length, chosen.jump_count, chosen.eta, chosen.update_known != 0};
    }
    out.composite = params.composite != 0;
    out.latents = arguments.latents(params.latents);
    out.latents_only = params.latents_only != 0;
    out.vae_tiling = params.vae_tiling != 0;
    out.record_energies = params.record_energies != 0;
    out.record_attention = params.record_attention != 0;
    out.on_step = on_step(params.on_step, params.on_step_data);
    out.subject = subjects(params);
    conditioning.reading = {params.prompt_weighting != 0, params.long_prompts != 0};
    conditioning.clip_skip = params.clip_skip;
    return out;
}

InvertRequest invert_request(const Engine& engine, const Session& session, const ebca_invert_params* given) {
    const ebca_invert_params params = checked(needed(given, "ebca_invert_params"), "ebca_invert_params");
    const Arguments arguments(engine, session);
    InvertRequest out;
    Conditioning& conditioning = out.conditioning;
    conditioning.prompt = arguments.prompt(params.prompt, "prompt");
    conditioning.prompt.texts_2 = arguments.second(params.prompt_2, "prompt_2");
    conditioning.prompt.pooled = arguments.pooled(params.pooled_prompt_embeds, "pooled_prompt_embeds");
    out.sizes = size_conditions(params.size_conditions, "size_conditions");
    out.images = arguments.images(params.images, params.image_count, "images");
    out.latents = arguments.latents(params.latents);
    out.steps = params.steps;
    if (params.regularize) {
        ebca_regularize_params chosen = checked(params.regularize, "ebca_regularize_params");
        out.regularize =
            NoiseRegularization{chosen.rounds, chosen.rolls, chosen.auto_correlation, chosen.kl, chosen.seed};
    }
    out.vae_tiling = params.vae_tiling != 0;
    out.on_step = on_step(params.on_step, params.on_step_data);
    conditioning.reading = {params.prompt_weighting != 0, params.long_prompts != 0};
    conditioning.clip_skip = params.clip_skip;
    return out;
}

DenoiseRequest denoise_request(const Engine& engine, const Session& session, const ebca_denoise_params* given) {
    const ebca_denoise_params params = checked(needed(given, "ebca_denoise_params"), "ebca_denoise_params");
    DenoiseRequest out;
    check_list(params.timesteps, params.timestep_count, "timesteps", kMostItems);
    out.timesteps.assign(params.timesteps, params.timesteps + params.timestep_count);
    const Shape sample = needed_shape(params.sample, "sample"), contexts = needed_shape(params.contexts, "contexts");
    const Shape text_embeds = shape_of(params.text_embeds, kTextEmbeds).value_or(Shape()),
                time_ids = shape_of(params.time_ids, kTimeIds).value_or(Shape());
    const UNetSpec& unet = engine.manifest().unet;
    check_denoise({sample, contexts, text_embeds, time_ids}, out.timesteps, unet, session.latent_shape());
    const Device& device = engine.device();
    out.sample = copied(device, params.sample, sample);
    out.conditions.contexts = copied(device, params.contexts, contexts);
    if (unet.pooled_size()) {
        out.conditions.text_embeds = copied(device, params.text_embeds, text_embeds);
        out.conditions.time_ids = copied(device, params.time_ids, time_ids);
    }
    // What broadcasts to these has as many values at most.
    int64_t values = std::max(elements({contexts[0], contexts[1], contexts[2]}), contexts[0] * sample[2] * sample[3]);
    auto control = [&](const ebca_tensor& tensor, const char* name) { return array(device, tensor, name, values); };
    out.control.gamma_attn = control(params.gamma_attn, "gamma_attn");
    out.control.gamma_norm = control(params.gamma_norm, "gamma_norm");
    out.control.weights = control(params.weights, "weights");
    out.control.mask = control(params.mask, "mask");
    out.control.tie_unconditional = params.tie_unconditional != 0;
    out.control.rows_per_image = params.rows_per_image;
    out.control.norm_factor = params.norm_factor;
    out.record_energies = params.record_energies != 0;
    return out;
}

Conditioning encode_prompt_request(const ebca_encode_prompt_params* given) {
    const auto params = checked(needed(given, "ebca_encode_prompt_params"), "ebca_encode_prompt_params");
    if (!params.count) throw rules::is_null("texts");
    check_list(params.texts, params.count, "texts", limits::images);
    check_list(params.texts_2, params.count_2, "texts_2", limits::images);
    Conditioning out;
    out.prompt.texts = texts_of(params.texts, params.count, "texts");
    out.prompt.texts_2 = texts_of(params.texts_2, params.count_2, "texts_2");
    out.reading = {params.prompt_weighting != 0, params.long_prompts != 0};
    out.clip_skip = params.clip_skip;
    return out;
}

EncodeImagesRequest encode_images_request(const ebca_encode_images_params* given) {
    const auto params = checked(needed(given, "ebca_encode_images_params"), "ebca_encode_images_params");
    EncodeImagesRequest out;
    check_list(params.images, params.image_count, "images", limits::images);
    out.images = images_of(params.images, params.image_count, "images");
    out.height = params.height;
    out.width = params.width;
    out.sample = params.sample != 0;
    check_list(params.seeds, params.seed_count, "seeds", limits::images);
    out.seeds.assign(params.seeds, params.seeds + params.seed_count);
    return out;
}

}  // namespace ebca::internal
