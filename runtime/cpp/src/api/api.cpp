// The boundary of the library: C structs to our own, and every exception to a status.
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "ebca.h"
#include "engine.hpp"
#include "error.hpp"
#include "session.hpp"
#include "tokenizer/unicode.hpp"

// ebca_last_error speaks of a thread's calls, so its text lies there.
static thread_local std::string thread_error;

struct ebca_engine {
    std::shared_ptr<ebca::Engine> engine;
    std::string schedulers;
    mutable std::mutex lock;
    std::string last_error;
};

struct ebca_session {
    std::shared_ptr<ebca::Engine> engine;
    ebca::Session session;
    std::string last_error;
    std::atomic<bool> busy{false};
};

namespace {

using ebca::Array;
using ebca::ParameterError;
using ebca::text;

struct OwnedResult : ebca_result {
    ebca::Result own;
};

// Texts of errors are UTF-8, whatever the names and paths in them are.
std::string readable(const char* message) {
    std::string out = message;
    try {
        ebca::unicode::decode(out);
    } catch (const ebca::Error&) {
        for (char& c : out) {
            if (static_cast<unsigned char>(c) > 0x7e) c = '?';
        }
    }
    return out;
}

void assign(std::string& target, const char* message) noexcept {
    try {
        target = readable(message);
    } catch (...) {
        target.clear();
    }
}

// Runs `work`, and turns what it throws into a status with a text.
template <typename Work>
ebca_status guarded(Work&& work) noexcept {
    try {
        thread_error.clear();
        work();
        return EBCA_OK;
    } catch (const ebca::Error& error) {
        assign(thread_error, error.what());
        return static_cast<ebca_status>(error.status);
    } catch (const std::bad_alloc&) {
        assign(thread_error, "out of memory; make a smaller picture or fewer at once");
        return EBCA_ERROR_OUT_OF_MEMORY;
    } catch (const std::exception& error) {
        assign(thread_error, error.what());
        return EBCA_ERROR_INTERNAL;
    } catch (...) {
        assign(thread_error, "an exception of a kind that is not ours; do callbacks throw?");
        return EBCA_ERROR_INTERNAL;
    }
}

template <typename Work>
ebca_status guarded(ebca_engine* engine, Work&& work) noexcept {
    ebca_status status = guarded([&] {
        if (!engine) throw ParameterError("the engine is NULL; open one with ebca_engine_open");
        work();
    });
    if (engine && status != EBCA_OK) {
        std::lock_guard held(engine->lock);
        assign(engine->last_error, thread_error.c_str());
    }
    return status;
}

// One call of a session at a time.
template <typename Work>
ebca_status guarded(ebca_session* session, Work&& work) noexcept {
    bool entered = session && !session->busy.exchange(true);
    ebca_status status = guarded([&] {
        if (!session) throw ParameterError("the session is NULL; create one with ebca_session_create");
        if (!entered) {
            throw ParameterError(
                "this session is in another call; use one session per thread, and none from callbacks");
        }
        work();
    });
    if (entered) {
        // After a success the thread's text may be of another call that a callback made.
        assign(session->last_error, status == EBCA_OK ? "" : thread_error.c_str());
        session->busy = false;
    }
    return status;
}

void need_target(const void* target, const char* what) {
    if (!target) throw ParameterError(text("there is no place for the ", what, ": the pointer is NULL"));
}

void set_defaults(ebca_engine_params& params) {
    params.device = "cpu";
}

void set_defaults(ebca_engine_info&) {}

void set_defaults(ebca_session_params& params) {
    params.batch = 1;
}

void set_defaults(ebca_edit& edit) {
    edit.direction = 1;
    edit.alpha.value = 1;
}

void set_defaults(ebca_repaint_params& params) {
    params.jump_length = params.jump_count = 10;
}

void set_defaults(ebca_regularize_params& params) {
    params.rounds = params.rolls = 5;
    params.auto_correlation = params.kl = 20;
}

void set_defaults(ebca_generate_params& params) {
    params.steps = 50;
    params.guidance_scale = params.strength = std::nan("");
    params.norm_factor = 1;
    params.composite = 1;
}

void set_defaults(ebca_invert_params& params) {
    params.steps = 50;
}

// Defaults into the caller's struct, of which it alone knows the size: its header may be another one than ours.
template <typename Params>
void fill(Params* target, size_t size) {
    if (!target || size < sizeof target->struct_size) return;
    Params own{};
    set_defaults(own);
    own.struct_size = size;
    std::memset(target, 0, size);
    std::memcpy(target, &own, std::min(size, sizeof own));
}

// A copy of the caller's struct, which may be of an older header.
template <typename Params>
Params checked(const Params* given, const char* what) {
    // Of the first version that had it; grows only where a struct is new.
    constexpr size_t first = sizeof(Params);
    Params params{};
    set_defaults(params);
    if (!given) return params;
    if (given->struct_size < first || given->struct_size > sizeof(Params)) {
        throw ParameterError(text(what, " has struct_size ", given->struct_size, ", this library knows ", first, " to ",
                                  sizeof(Params), "; call its _init function, and compile against a header of version ",
                                  ebca_version(), " or older"));
    }
    std::memcpy(&params, given, given->struct_size);
    return params;
}

template <typename Params>
const Params* needed(const Params* given, const char* what) {
    if (!given) throw ParameterError(text(what, " is NULL"));
    return given;
}

// A pointer with a count: NULL only where there is nothing.
void check_list(const void* items, size_t count, const char* what) {
    if (count && !items) throw ParameterError(text(what, " is NULL, but ", count, " are announced"));
    if (count > 1 << 20) throw ParameterError(text(count, " ", what, " are more than can be"));
}

std::string string(const char* given) {
    return given ? given : "";
}

std::optional<double> given_number(double value) {
    return std::isnan(value) ? std::nullopt : std::optional<double>(value);
}

std::optional<Array> array(const ebca::Device& device, const ebca_tensor& tensor, const char* what) {
    if (!tensor.data) return std::nullopt;
    if (tensor.memory != EBCA_MEMORY_HOST && tensor.memory != EBCA_MEMORY_CUDA) {
        throw ParameterError(text(what, " have the unknown memory ", tensor.memory));
    }
    if (tensor.rank < 1 || tensor.rank > 4) {
        throw ParameterError(text(what, " have rank ", tensor.rank, "; give 1 to 4 dimensions"));
    }
    ebca::Shape shape(tensor.shape, tensor.shape + tensor.rank);
    int64_t count = 1;
    for (int64_t size : shape) {
        if (size < 1 || __builtin_mul_overflow(count, size, &count) || count > int64_t{1} << 40) {
            throw ParameterError(text(what, " have shape ", ebca::to_string(shape), ", which cannot be"));
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

ebca::Prompt prompt(const ebca::Device& device, const ebca_prompt& given, const char* what) {
    ebca::Prompt out;
    check_list(given.texts, given.count, what);
    for (size_t i = 0; i < given.count; ++i) {
        if (!given.texts[i]) throw ParameterError(text("text ", i, " of the ", what, " is NULL"));
        out.texts.emplace_back(given.texts[i]);
    }
    out.embeds = array(device, given.embeds, what);
    return out;
}

ebca::Schedule schedule(const ebca_schedule& given, const char* what) {
    if (given.kind < EBCA_SCHEDULE_CONSTANT || given.kind > EBCA_SCHEDULE_VALUES) {
        throw ParameterError(text(what, " has the unknown kind ", given.kind, "; give one of EBCA_SCHEDULE_..."));
    }
    ebca::Schedule out{static_cast<ebca::Schedule::Kind>(given.kind), given.value, given.parameter, {}};
    if (given.kind == EBCA_SCHEDULE_VALUES) {
        check_list(given.values, given.count, what);
        out.values.assign(given.values, given.values + given.count);
    }
    return out;
}

std::vector<ebca::Picture> pictures(const ebca_image* given, size_t count, const char* what) {
    check_list(given, count, what);
    std::vector<ebca::Picture> out;
    for (size_t i = 0; i < count; ++i) {
        out.push_back({given[i].pixels, given[i].height, given[i].width, given[i].channels});
    }
    return out;
}

ebca::OnStep on_step(ebca_step_callback callback, void* data) {
    if (!callback) return {};
    return [callback, data](const ebca::StepInfo& info) {
        ebca_step_info out{};
        out.struct_size = sizeof out;
        out.index = info.index;
        out.total = info.total;
        out.timestep = info.timestep;
        out.latents = info.latents.values.data();
        std::copy_n(info.latents.shape.begin(), 4, out.latents_shape);
        out.contexts = info.contexts.floats();
        std::copy_n(info.contexts.shape.begin(), 4, out.contexts_shape);
        return callback(&out, data) != 0;
    };
}

std::vector<ebca::Edit> edits(const ebca::Device& device, const ebca_edit* given, size_t count) {
    check_list(given, count, "edits");
    std::vector<ebca::Edit> out;
    // The caller's struct may be smaller than ours.
    const auto* at = reinterpret_cast<const std::byte*>(given);
    for (size_t i = 0; i < count; ++i) {
        const auto* entry = reinterpret_cast<const ebca_edit*>(at);
        ebca_edit edit = checked(entry, "ebca_edit");
        out.push_back({prompt(device, edit.prompt, "editing prompt"), edit.direction, schedule(edit.alpha, "alpha"),
                       schedule(edit.gamma_attn, "gamma_attn of an edit"),
                       schedule(edit.gamma_norm, "gamma_norm of an edit")});
        at += entry->struct_size;
    }
    return out;
}

ebca::GenerateOptions generate_options(const ebca::Device& device, const ebca_generate_params* given) {
    const ebca_generate_params params = checked(needed(given, "ebca_generate_params"), "ebca_generate_params");
    ebca::GenerateOptions out;
    out.prompt = prompt(device, params.prompt, "prompt");
    out.negative_prompt = prompt(device, params.negative_prompt, "negative prompt");
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
    out.image = pictures(params.images, params.image_count, "images");
    out.mask = pictures(params.masks, params.mask_count, "masks");
    out.strength = given_number(params.strength);
    if (params.repaint) {
        ebca_repaint_params chosen = checked(params.repaint, "ebca_repaint_params");
        out.repaint = ebca::RePaint{chosen.jump_length, chosen.jump_count, chosen.eta, chosen.update_known != 0};
    }
    out.composite = params.composite != 0;
    out.latents = array(device, params.latents, "latents");
    out.latents_only = params.latents_only != 0;
    out.on_step = on_step(params.on_step, params.on_step_data);
    return out;
}

ebca::InvertOptions invert_options(const ebca::Device& device, const ebca_invert_params* given) {
    const ebca_invert_params params = checked(needed(given, "ebca_invert_params"), "ebca_invert_params");
    ebca::InvertOptions out;
    out.prompt = prompt(device, params.prompt, "prompt");
    out.image = pictures(params.images, params.image_count, "images");
    out.latents = array(device, params.latents, "latents");
    out.steps = params.steps;
    if (params.regularize) {
        ebca_regularize_params chosen = checked(params.regularize, "ebca_regularize_params");
        out.regularize =
            ebca::NoiseRegularization{chosen.rounds, chosen.rolls, chosen.auto_correlation, chosen.kl, chosen.seed};
    }
    out.on_step = on_step(params.on_step, params.on_step_data);
    return out;
}

ebca_result* handed_over(ebca::Result&& made, const ebca::Session& session) {
    auto result = std::make_unique<OwnedResult>();
    result->own = std::move(made);
    const ebca::Result& own = result->own;
    result->struct_size = sizeof(ebca_result);
    result->task = own.task.c_str();
    result->scheduler = own.scheduler.c_str();
    result->pictures = static_cast<int32_t>(session.batch());
    result->height = static_cast<int32_t>(session.height());
    result->width = static_cast<int32_t>(session.width());
    result->pixels = own.pixels.empty() ? nullptr : own.pixels.data();
    result->latents = own.latents.values.data();
    std::copy_n(own.latents.shape.begin(), 4, result->latents_shape);
    result->evaluations = own.timesteps.size();
    result->timesteps = own.timesteps.data();
    result->unet_seconds = own.timings.unet_steps.data();
    result->text_encoder_seconds = own.timings.text_encoder;
    result->vae_encoder_seconds = own.timings.vae_encoder;
    result->open_seconds = own.timings.open;
    result->scheduler_seconds = own.timings.scheduler;
    result->vae_seconds = own.timings.vae;
    result->seeds = own.seeds.data();
    result->seed_count = own.seeds.size();
    return result.release();
}

uint32_t tasks(const ebca::Manifest& manifest) {
    const ebca::UNetSpec& unet = manifest.unet;
    bool plain = unet.in_channels == unet.out_channels;
    bool inpaints = unet.in_channels == 2 * unet.out_channels + 1;
    uint32_t out = plain ? EBCA_TASK_TEXT_TO_IMAGE : 0;
    if ((plain || inpaints) && unet.max_contexts.value_or(2) > 1) out |= EBCA_TASK_EDITING;
    if (plain && manifest.vae) out |= EBCA_TASK_IMAGE_TO_IMAGE;
    if (manifest.vae && (inpaints || (plain && manifest.schedulers.prediction_type == "epsilon"))) {
        out |= EBCA_TASK_INPAINTING;
    }
    if (plain && manifest.schedulers.tables.count("ddim_inverse")) out |= EBCA_TASK_INVERSION;
    return out;
}

}  // namespace

const char* ebca_version(void) {
    return EBCA_VERSION_TEXT;
}

const char* ebca_last_error(void) {
    return thread_error.c_str();
}

void ebca_engine_params_init(ebca_engine_params* params, size_t struct_size) {
    fill(params, struct_size);
}

ebca_status ebca_engine_open(const ebca_engine_params* given, ebca_engine** engine) {
    if (engine) *engine = nullptr;
    return guarded([&] {
        need_target(engine, "engine");
        const ebca_engine_params params = checked(needed(given, "ebca_engine_params"), "ebca_engine_params");
        if (!params.path || !*params.path) throw ParameterError("path is missing; name an engine directory");
        ebca::EngineOptions options;
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
            options.on_prepare = [call = params.on_prepare, data = params.on_prepare_data](
                                     int64_t done, int64_t total, const std::string& component) {
                call(done, total, component.c_str(), data);
            };
        }
        if (params.log) {
            options.log = [call = params.log, data = params.log_data](ebca::LogLevel level,
                                                                      const std::string& message) {
                call(static_cast<ebca_log_level>(level), message.c_str(), data);
            };
        }
        auto handle = std::make_unique<ebca_engine>();
        handle->engine = std::make_shared<ebca::Engine>(options);
        for (const auto& [name, table] : handle->engine->manifest().schedulers.tables) {
            if (name != "ddim_inverse") handle->schedulers += (handle->schedulers.empty() ? "" : ",") + name;
        }
        *engine = handle.release();
    });
}

void ebca_engine_free(ebca_engine* engine) {
    delete engine;
}

const char* ebca_engine_last_error(const ebca_engine* engine) {
    if (!engine) return "the engine is NULL";
    std::lock_guard held(engine->lock);
    assign(thread_error, engine->last_error.c_str());
    return thread_error.c_str();
}

ebca_status ebca_engine_get_info(ebca_engine* engine, ebca_engine_info* info) {
    return guarded(engine, [&] {
        checked(needed<ebca_engine_info>(info, "ebca_engine_info"), "ebca_engine_info");
        const ebca::Manifest& manifest = engine->engine->manifest();
        int64_t downscale = manifest.vae ? manifest.vae->downscale : 8;
        ebca_engine_info out{};
        out.struct_size = info->struct_size;
        out.model = manifest.name.c_str();
        out.kind = manifest.kind.c_str();
        out.backend = engine->engine->backend().name().c_str();
        out.backend_version = engine->engine->backend().version().c_str();
        out.tasks = tasks(manifest);
        out.has_text_encoder = manifest.text_encoder.has_value();
        out.has_vae = manifest.vae.has_value();
        out.height = out.width = static_cast<int32_t>(manifest.unet.sample_size * downscale);
        out.downscale = static_cast<int32_t>(downscale);
        out.latent_channels = static_cast<int32_t>(manifest.unet.out_channels);
        out.context_width = static_cast<int32_t>(manifest.unet.context_dim);
        out.max_tokens = manifest.text_encoder ? static_cast<int32_t>(manifest.text_encoder->max_length) : 0;
        out.threads = engine->engine->backend().threads();
        out.guidance_scale = manifest.guidance_scale;
        out.scheduler = manifest.schedulers.standard.c_str();
        out.schedulers = engine->schedulers.c_str();
        std::memcpy(info, &out, info->struct_size);
    });
}

void ebca_session_params_init(ebca_session_params* params, size_t struct_size) {
    fill(params, struct_size);
}

ebca_status ebca_session_create(ebca_engine* engine, const ebca_session_params* given, ebca_session** session) {
    if (session) *session = nullptr;
    return guarded(engine, [&] {
        need_target(session, "session");
        ebca_session_params params = checked(given, "ebca_session_params");
        *session =
            new ebca_session{engine->engine, {engine->engine, params.height, params.width, params.batch}, {}, {false}};
    });
}

void ebca_session_free(ebca_session* session) {
    delete session;
}

const char* ebca_session_last_error(const ebca_session* session) {
    return session ? session->last_error.c_str() : "the session is NULL";
}

ebca_status ebca_session_cancel(ebca_session* session) {
    if (!session) {
        assign(thread_error, "the session is NULL");
        return EBCA_ERROR_PARAMETER;
    }
    session->session.cancel();
    return EBCA_OK;
}

void ebca_edit_init(ebca_edit* edit, size_t struct_size) {
    fill(edit, struct_size);
}

void ebca_repaint_params_init(ebca_repaint_params* params, size_t struct_size) {
    fill(params, struct_size);
}

void ebca_regularize_params_init(ebca_regularize_params* params, size_t struct_size) {
    fill(params, struct_size);
}

void ebca_generate_params_init(ebca_generate_params* params, size_t struct_size) {
    fill(params, struct_size);
}

void ebca_invert_params_init(ebca_invert_params* params, size_t struct_size) {
    fill(params, struct_size);
}

ebca_status ebca_session_generate(ebca_session* session, const ebca_generate_params* params, ebca_result** result) {
    if (result) *result = nullptr;
    return guarded(session, [&] {
        need_target(result, "result");
        ebca::GenerateOptions options = generate_options(session->engine->device(), params);
        *result = handed_over(session->session.generate(options), session->session);
    });
}

ebca_status ebca_session_invert(ebca_session* session, const ebca_invert_params* params, ebca_result** result) {
    if (result) *result = nullptr;
    return guarded(session, [&] {
        need_target(result, "result");
        ebca::InvertOptions options = invert_options(session->engine->device(), params);
        *result = handed_over(session->session.invert(options), session->session);
    });
}

void ebca_result_free(ebca_result* result) {
    delete static_cast<OwnedResult*>(result);
}
