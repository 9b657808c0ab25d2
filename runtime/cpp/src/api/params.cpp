// The parameter structs of ebca.h to the library's own.
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/structs.hpp"

namespace ebca::internal {
namespace {

constexpr size_t kMostItems = 1 << 20;

// A pointer with a count: NULL only with a count of 0.
void check_list(const void* items, size_t count, const std::string& name) {
    if (count && !items) throw rules::list_null(name, count);
    if (count > kMostItems) throw rules::list_too_long(name, count, kMostItems);
}

std::string string(const char* given) {
    return given ? given : "";
}

std::optional<double> given_number(double value) {
    return std::isnan(value) ? std::nullopt : std::optional<double>(value);
}

std::vector<std::string> texts(const char* const* given, size_t count, const std::string& name) {
    check_list(given, count, name);
    std::vector<std::string> out;
    for (size_t i = 0; i < count; ++i) {
        if (!given[i]) throw rules::is_null(text(name, "[", i, "]"));
        out.emplace_back(given[i]);
    }
    return out;
}

Prompt prompt(const Device& device, const ebca_prompt& given, const std::string& name) {
    Prompt out;
    out.texts = texts(given.texts, given.count, name + ".texts");
    out.embeds = array(device, given.embeds, name + ".embeds");
    return out;
}

Schedule schedule(const ebca_schedule& given, const std::string& name) {
    if (given.kind < EBCA_SCHEDULE_CONSTANT || given.kind > EBCA_SCHEDULE_VALUES) {
        throw rules::schedule_kind(name, given.kind);
    }
    Schedule out{static_cast<Schedule::Kind>(given.kind), given.value, given.parameter, {}};
    if (given.kind == EBCA_SCHEDULE_VALUES) {
        check_list(given.values, given.count, name + ".values");
        out.values.assign(given.values, given.values + given.count);
    }
    return out;
}

std::vector<ImageView> images(const ebca_image* given, size_t count, const char* name) {
    check_list(given, count, name);
    std::vector<ImageView> out;
    for (size_t i = 0; i < count; ++i) {
        out.push_back({given[i].pixels, given[i].height, given[i].width, given[i].channels});
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
        return callback(&out, data) != 0;
    };
}

std::vector<Edit> edits(const Device& device, const ebca_edit* given, size_t count) {
    check_list(given, count, "edits");
    std::vector<Edit> out;
    // The caller's struct may be smaller than this library's.
    const auto* at = reinterpret_cast<const std::byte*>(given);
    for (size_t i = 0; i < count; ++i) {
        const auto* entry = reinterpret_cast<const ebca_edit*>(at);
        ebca_edit edit = checked(entry, "ebca_edit");
        const std::string name = text("edits[", i, "].");
        out.push_back({prompt(device, edit.prompt, name + "prompt"), edit.direction,
                       schedule(edit.alpha, name + "alpha"), schedule(edit.gamma_attn, name + "gamma_attn"),
                       schedule(edit.gamma_norm, name + "gamma_norm")});
        at += entry->struct_size;
    }
    return out;
}

Subjects subjects(const ebca_generate_params& params) {
    Subjects out;
    out.phrases = texts(params.subjects, params.subject_count, "subjects");
    check_list(params.regions, params.region_count, "regions");
    for (size_t i = 0; i < params.region_count; ++i) {
        const ebca_region& one = params.regions[i];
        if (!one.subject) throw rules::is_null(text("regions[", i, "].subject"));
        out.regions.push_back({one.subject, {one.mask.pixels, one.mask.height, one.mask.width, one.mask.channels}});
    }
    out.exclusion = schedule(params.subject_exclusion, "subject_exclusion");
    out.balance = schedule(params.subject_balance, "subject_balance");
    out.window = params.subject_window;
    return out;
}

}  // namespace

std::optional<Array> array(const Device& device, const ebca_tensor& tensor, const std::string& name) {
    if (!tensor.data) return std::nullopt;
    if (tensor.memory != EBCA_MEMORY_HOST && tensor.memory != EBCA_MEMORY_CUDA) {
        throw rules::tensor_memory(name, tensor.memory);
    }
    if (tensor.rank < 1 || tensor.rank > 4) {
        throw rules::tensor_rank(name, tensor.rank);
    }
    Shape shape(tensor.shape, tensor.shape + tensor.rank);
    int64_t count = 1;
    for (int64_t size : shape) {
        if (size < 1 || __builtin_mul_overflow(count, size, &count) || count > int64_t{1} << 40) {
            throw rules::tensor_shape(name, to_string(shape));
        }
    }
    Array out(shape);
    size_t bytes = out.values.size() * sizeof(float);
    if (tensor.memory == EBCA_MEMORY_CUDA) {
        device.read(out.values.data(), tensor.data, static_cast<int64_t>(bytes));
    } else {
        std::memcpy(out.values.data(), tensor.data, bytes);
    }
    return out;
}

EngineOptions engine_options(const ebca_engine_params* given) {
    const ebca_engine_params params = checked(needed(given, "ebca_engine_params"), "ebca_engine_params");
    if (!params.path || !*params.path) throw rules::path_missing();
    EngineOptions options;
    options.path = params.path;
    options.device = params.device ? params.device : "cpu";
    options.cpu.backend = string(params.backend);
    options.cpu.precision = string(params.precision);
    options.cpu.threads = params.threads;
    options.cpu.ort_library = string(params.onnxruntime_library);
    options.cpu.openvino_library = string(params.openvino_library);
    options.gpu.stream = params.cuda_stream;
    options.gpu.kernels = string(params.kernels_dir);
    options.gpu.tensorrt_rtx_library = string(params.tensorrt_rtx_library);
    options.cache = string(params.cache_dir);
    if (params.on_prepare) {
        options.on_prepare = [call = params.on_prepare, data = params.on_prepare_data](int64_t done, int64_t total,
                                                                                       const std::string& component) {
            call(done, total, component.c_str(), data);
        };
    }
    if (params.log) {
        options.log = [call = params.log, data = params.log_data](LogLevel level, const std::string& message) {
            call(static_cast<ebca_log_level>(level), message.c_str(), data);
        };
    }
    return options;
}

GenerateRequest generate_request(const Device& device, const ebca_generate_params* given) {
    const ebca_generate_params params = checked(needed(given, "ebca_generate_params"), "ebca_generate_params");
    GenerateRequest out;
    out.prompt = prompt(device, params.prompt, "prompt");
    out.negative_prompt = prompt(device, params.negative_prompt, "negative_prompt");
    out.steps = params.steps;
    out.guidance_scale = given_number(params.guidance_scale);
    out.scheduler = string(params.scheduler);
    check_list(params.seeds, params.seed_count, "seeds");
    out.seeds.assign(params.seeds, params.seeds + params.seed_count);
    out.gamma_attn = schedule(params.gamma_attn, "gamma_attn");
    out.gamma_norm = schedule(params.gamma_norm, "gamma_norm");
    check_list(params.token_weights, params.token_weight_count, "token_weights");
    for (size_t i = 0; i < params.token_weight_count; ++i) {
        const ebca_token_weight& one = params.token_weights[i];
        out.token_weights.push_back(
            {one.word ? std::optional<std::string>(one.word) : std::nullopt, one.position, one.factor});
    }
    out.norm_factor = params.norm_factor;
    out.edits = edits(device, params.edits, params.edit_count);
    out.reset_edits = params.reset_edits != 0;
    out.images = images(params.images, params.image_count, "images");
    out.masks = images(params.masks, params.mask_count, "masks");
    out.strength = given_number(params.strength);
    if (params.repaint) {
        ebca_repaint_params chosen = checked(params.repaint, "ebca_repaint_params");
        out.repaint = RePaint{chosen.jump_length, chosen.jump_count, chosen.eta, chosen.update_known != 0};
    }
    out.composite = params.composite != 0;
    out.latents = array(device, params.latents, "latents");
    out.latents_only = params.latents_only != 0;
    out.record_energies = params.record_energies != 0;
    out.record_attention = params.record_attention != 0;
    out.on_step = on_step(params.on_step, params.on_step_data);
    out.subject = subjects(params);
    out.reading = {params.prompt_weighting != 0, params.long_prompts != 0};
    out.clip_skip = params.clip_skip;
    return out;
}

InvertRequest invert_request(const Device& device, const ebca_invert_params* given) {
    const ebca_invert_params params = checked(needed(given, "ebca_invert_params"), "ebca_invert_params");
    InvertRequest out;
    out.prompt = prompt(device, params.prompt, "prompt");
    out.images = images(params.images, params.image_count, "images");
    out.latents = array(device, params.latents, "latents");
    out.steps = params.steps;
    if (params.regularize) {
        ebca_regularize_params chosen = checked(params.regularize, "ebca_regularize_params");
        out.regularize =
            NoiseRegularization{chosen.rounds, chosen.rolls, chosen.auto_correlation, chosen.kl, chosen.seed};
    }
    out.on_step = on_step(params.on_step, params.on_step_data);
    out.reading = {params.prompt_weighting != 0, params.long_prompts != 0};
    out.clip_skip = params.clip_skip;
    return out;
}

DenoiseRequest denoise_request(const Device& device, const ebca_denoise_params* given) {
    const ebca_denoise_params params = checked(needed(given, "ebca_denoise_params"), "ebca_denoise_params");
    DenoiseRequest out;
    out.sample = array(device, params.sample, "sample");
    check_list(params.timesteps, params.timestep_count, "timesteps");
    out.timesteps.assign(params.timesteps, params.timesteps + params.timestep_count);
    out.contexts = array(device, params.contexts, "contexts");
    out.control.gamma_attn = array(device, params.gamma_attn, "gamma_attn");
    out.control.gamma_norm = array(device, params.gamma_norm, "gamma_norm");
    out.control.weights = array(device, params.weights, "weights");
    out.control.mask = array(device, params.mask, "mask");
    out.control.tie_unconditional = params.tie_unconditional != 0;
    out.control.rows_per_image = params.rows_per_image;
    out.control.norm_factor = params.norm_factor;
    out.record_energies = params.record_energies != 0;
    return out;
}

EncodePromptRequest encode_prompt_request(const ebca_encode_prompt_params* given) {
    const auto params = checked(needed(given, "ebca_encode_prompt_params"), "ebca_encode_prompt_params");
    if (!params.count) throw rules::is_null("texts");
    return {texts(params.texts, params.count, "texts"),
            {params.prompt_weighting != 0, params.long_prompts != 0},
            params.clip_skip};
}

EncodeImagesRequest encode_images_request(const ebca_encode_images_params* given) {
    const auto params = checked(needed(given, "ebca_encode_images_params"), "ebca_encode_images_params");
    EncodeImagesRequest out;
    out.images = images(params.images, params.image_count, "images");
    out.height = params.height;
    out.width = params.width;
    out.sample = params.sample != 0;
    check_list(params.seeds, params.seed_count, "seeds");
    out.seeds.assign(params.seeds, params.seeds + params.seed_count);
    return out;
}

}  // namespace ebca::internal
