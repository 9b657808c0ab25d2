// What the library returns, as structs of ebca.h.
#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/structs.hpp"

namespace ebca::internal {
namespace {

struct OwnedResult : ebca_result {
    Result own;
    std::optional<Memory> on_gpu;
};

// A tensor of a result, and the array that it shows.
struct Shown {
    ebca_tensor ebca_result::*tensor;
    Array Result::*array;
};

constexpr Shown kShown[] = {
    {&ebca_result::latents, &Result::latents},
    {&ebca_result::embeds, &Result::embeds},
    {&ebca_result::pooled_embeds, &Result::pooled_embeds},
    {&ebca_result::noise, &Result::noise},
    {&ebca_result::contexts, &Result::contexts},
    {&ebca_result::attention_energies, &Result::attention_energies},
    {&ebca_result::norm_energies, &Result::norm_energies},
    {&ebca_result::attention_maps, &Result::attention_maps},
};

uint32_t tasks(const Manifest& manifest) {
    const UNetSpec& unet = manifest.unet;
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

std::string scheduler_names(const Manifest& manifest) {
    std::string out;
    for (const auto& [name, table] : manifest.schedulers.tables) {
        if (name != "ddim_inverse") out += (out.empty() ? "" : ",") + name;
    }
    return out;
}

ebca_engine_info engine_info(Engine& engine, const std::string& schedulers) {
    const Manifest& manifest = engine.manifest();
    int64_t downscale = manifest.vae ? manifest.vae->downscale : defaults::downscale;
    ebca_engine_info out{};
    out.struct_size = sizeof out;
    out.model = manifest.name.c_str();
    out.kind = manifest.kind.c_str();
    out.backend = engine.backend().name().c_str();
    out.backend_version = engine.backend().version().c_str();
    out.tasks = tasks(manifest);
    out.has_text_encoder = manifest.text_encoder.has_value();
    out.has_vae = manifest.vae.has_value();
    out.height = out.width = static_cast<int32_t>(manifest.unet.sample_size * downscale);
    out.downscale = static_cast<int32_t>(downscale);
    out.latent_channels = static_cast<int32_t>(manifest.unet.out_channels);
    out.context_width = static_cast<int32_t>(manifest.unet.context_dim);
    out.max_tokens = manifest.text_encoder ? static_cast<int32_t>(manifest.text_encoder->max_length) : 0;
    out.threads = engine.backend().threads();
    out.guidance_scale = manifest.guidance_scale;
    out.scheduler = manifest.schedulers.standard.c_str();
    out.schedulers = schedulers.c_str();
    out.pooled_width = static_cast<int32_t>(manifest.unet.pooled_size());
    return out;
}

ebca_tensor tensor(const Array& array) {
    ebca_tensor out{};
    if (array.values.empty()) return out;
    out.data = array.values.data();
    out.rank = static_cast<int32_t>(array.shape.size());
    std::copy(array.shape.begin(), array.shape.end(), out.shape);
    return out;
}

ebca_result* handed_over(Result&& made) {
    auto result = std::make_unique<OwnedResult>();
    result->own = std::move(made);
    const Result& own = result->own;
    result->struct_size = sizeof(ebca_result);
    result->task = own.task.empty() ? nullptr : own.task.c_str();
    result->scheduler = own.scheduler.empty() ? nullptr : own.scheduler.c_str();
    result->image_count = static_cast<int32_t>(own.images);
    result->height = static_cast<int32_t>(own.height);
    result->width = static_cast<int32_t>(own.width);
    result->pixels = own.pixels.empty() ? nullptr : own.pixels.data();
    for (const Shown& one : kShown) (*result).*one.tensor = tensor(own.*one.array);
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

void move_to(Device& device, ebca_result& result) {
    auto& owned = static_cast<OwnedResult&>(result);
    if (owned.on_gpu) throw rules::result_on_gpu();
    Result& own = owned.own;
    std::vector<int64_t> offsets;
    int64_t total = 0;
    auto place = [&](size_t bytes) {
        offsets.push_back(total);
        total += (static_cast<int64_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
    };
    for (const Shown& one : kShown) place((own.*one.array).values.size() * sizeof(float));
    place(own.pixels.size());
    Memory memory = device.allocate(total);
    auto* begin = static_cast<uint8_t*>(memory.view(0, {total / 4}, DType::float32).data);
    auto copy = [&](size_t index, const auto& values) {
        if (values.empty()) return;
        device.write(begin + offsets[index], values.data(), static_cast<int64_t>(values.size() * sizeof values[0]));
    };
    for (size_t i = 0; i < std::size(kShown); ++i) copy(i, (own.*kShown[i].array).values);
    copy(std::size(kShown), own.pixels);
    // From here on nothing throws.
    for (size_t i = 0; i < std::size(kShown); ++i) {
        ebca_tensor& tensor = result.*kShown[i].tensor;
        if (tensor.data) {
            tensor.data = reinterpret_cast<const float*>(begin + offsets[i]);
            tensor.memory = EBCA_MEMORY_CUDA;
        }
        own.*kShown[i].array = {};
    }
    if (result.pixels) {
        result.pixels = begin + offsets.back();
        result.memory = EBCA_MEMORY_CUDA;
    }
    own.pixels = {};
    owned.on_gpu = std::move(memory);
}

void free_result(ebca_result* result) {
    delete static_cast<OwnedResult*>(result);
}

}  // namespace ebca::internal
