#include "engine.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <set>

#include "error.hpp"
#include "parameters.hpp"

namespace ebca {
namespace {

Tensor as_tensor(Array& array) {
    return {array.values.data(), DType::float32, array.shape};
}

// One image of an array, as a batch of one.
Tensor one(Array& array, int64_t index) {
    Shape shape = array.shape;
    shape[0] = 1;
    return {array.row(index), DType::float32, shape};
}

}  // namespace

Engine::Engine(const EngineOptions& options) : log_(options.log) {
    parse_device(options.device);
    directory_ = open_directory(options.path);
    open_device(options);
    start(options);
}

Engine::Engine(const EngineOptions& options, std::shared_ptr<Device> device, std::shared_ptr<const Backend> backend)
    : directory_(open_directory(options.path)),
      device_(std::move(device)),
      backend_(std::move(backend)),
      log_(options.log) {
    start(options);
}

void Engine::open_device(const EngineOptions& options) {
    auto [kind, index] = parse_device(options.device);
    if (kind == "cpu") {
        device_ = std::make_shared<CpuDevice>();
        backend_ = create_cpu_backend(options.cpu);
        return;
    }
    const CpuBackendOptions& cpu = options.cpu;
    if (!cpu.backend.empty() || !cpu.precision.empty() || !cpu.openvino_library.empty() || cpu.threads) {
        throw ParameterError("backend, precision, threads and openvino_library are for the CPU",
                             "on a GPU the engine directory decides");
    }
    auto warn = [log = options.log](const std::string& message) {
        if (log) log(LogLevel::warning, message);
    };
    Gpu gpu = open_gpu(index, options.gpu, cpu.ort_library, warn);
    device_ = std::move(gpu.device);
    backend_ = std::move(gpu.backend);
}

void Engine::start(const EngineOptions& options) {
    prepared_.emplace(directory_, backend_, options.cache);
    prepare(options.on_prepare);
}

void Engine::prepare(const OnPrepare& on_prepare) {
    std::vector<std::string> names;
    for (const Step& step : manifest().unet.steps) {
        if (!step.is_op()) names.push_back(step.segment);
    }
    for (const auto& [op, variants] : manifest().unet.ops) {
        for (const auto& [variant, component] : variants) names.push_back(component);
    }
    if (!manifest().unet.full.empty()) names.push_back(manifest().unet.full);
    if (manifest().text_encoder) names.push_back(manifest().text_encoder->component);
    if (manifest().vae) names.push_back(manifest().vae->decoder);
    prepared_->prepare(names, on_prepare);
    prepared_->evict();
}

void Engine::log(LogLevel level, const std::string& message) const {
    if (log_) log_(level, message);
}

std::shared_ptr<Runner> Engine::runner(const std::string& component) {
    // The device first: executors that bind hold it already.
    auto device = device_->ready();
    std::lock_guard held(lock_);
    std::shared_ptr<Runner>& found = runners_[component];
    if (!found) found = prepared_->open(component);
    return found;
}

void Engine::release(const std::string& component) {
    std::lock_guard held(lock_);
    runners_.erase(component);
}

void Engine::forget_weights() {
    std::vector<std::string> names;
    for (const Step& step : manifest().unet.steps) {
        if (!step.is_op()) names.push_back(step.segment);
    }
    if (!manifest().unet.full.empty()) names.push_back(manifest().unet.full);
    prepared_->forget(names);
}

std::unique_ptr<Executor> Engine::executor(const Sizes& sizes) {
    try {
        return std::make_unique<Executor>(
            manifest().unet, [this](const std::string& name) { return runner(name); }, sizes, device_);
    } catch (const std::bad_alloc&) {
        throw rules::no_memory(sizes.at("batch"), sizes.at("height"), sizes.at("width"));
    }
}

const PromptTokenizer& Engine::tokenizer() {
    std::lock_guard held(lock_);
    if (!manifest().tokenizer) {
        throw rules::unet_only(directory_.path.string());
    }
    if (!tokenizer_) {
        const TokenizerSpec& spec = *manifest().tokenizer;
        directory_.verify({spec.file});
        tokenizer_.emplace(PromptTokenizer::from_json(
            read_file(directory_.file(spec.file), kLargestText),
            {spec.model_max_length, spec.bos_token_id, spec.eos_token_id, spec.pad_token_id}));
    }
    return *tokenizer_;
}

void Engine::verify_tables() {
    std::lock_guard held(lock_);
    if (tables_verified_) return;
    std::set<std::string> names{manifest().schedulers.alphas_cumprod};
    for (const auto& [name, table] : manifest().schedulers.tables) names.insert(table.file);
    directory_.verify({names.begin(), names.end()});
    tables_verified_ = true;
}

Array Engine::encode(const std::vector<int64_t>& ids, int64_t rows) {
    if (!manifest().text_encoder) {
        throw rules::no_text_encoder(directory_.path.string());
    }
    const TextEncoderSpec& spec = *manifest().text_encoder;
    Array out({rows, spec.max_length, spec.hidden_size});
    std::vector<int64_t> given = ids;
    Tensor input{given.data(), DType::int64, {rows, spec.max_length}};
    run_once(*device_, *runner(spec.component), {{"input_ids", input}}, {{"hidden_states", as_tensor(out)}});
    // It holds half a gigabyte at SD 1.5 size that no step needs; reopening it takes a fraction of a step.
    release(spec.component);
    return out;
}

Array Engine::decode(const Array& latents) {
    if (!manifest().vae) throw rules::no_vae_to_decode();
    const VaeSpec& spec = *manifest().vae;
    if (latents.size(1) != spec.latent_channels) {
        throw rules::latents_channels(latents.size(1), spec.latent_channels);
    }
    Array unscaled(latents.shape);
    auto scale = static_cast<float>(spec.scaling_factor), shift = static_cast<float>(spec.shift_factor);
    std::transform(latents.values.begin(), latents.values.end(), unscaled.values.begin(),
                   [&](float value) { return value / scale + shift; });
    Array images({latents.size(0), 3, latents.size(2) * spec.downscale, latents.size(3) * spec.downscale});
    std::shared_ptr<Runner> decoder = runner(spec.decoder);
    for (int64_t n = 0; n < latents.size(0); ++n) {
        run_once(*device_, *decoder, {{"latents", one(unscaled, n)}}, {{"image", one(images, n)}});
    }
    return images;
}

std::pair<Array, Array> Engine::encode_image(const Array& pixels) {
    if (!manifest().vae) throw rules::no_vae_for_image(directory_.path.string());
    const VaeSpec& spec = *manifest().vae;
    int64_t n = pixels.size(0), height = pixels.size(1), width = pixels.size(2), plane = height * width;
    Shape shape{n, spec.latent_channels, height / spec.downscale, width / spec.downscale};
    Array images({n, 3, height, width}), mean(shape), std(shape);
    for (int64_t row = 0; row < n; ++row) {
        for (int64_t i = 0; i < plane; ++i) {
            for (int64_t c = 0; c < 3; ++c) {
                images.row(row)[c * plane + i] = pixels.row(row)[i * 3 + c] * 2.0f - 1.0f;
            }
        }
    }
    {
        std::shared_ptr<Runner> encoder = runner(spec.encoder);
        for (int64_t row = 0; row < n; ++row) {
            run_once(*device_, *encoder, {{"image", one(images, row)}},
                     {{"mean", one(mean, row)}, {"std", one(std, row)}});
        }
    }
    // Not needed until the next image is passed in.
    release(spec.encoder);
    auto scale = static_cast<float>(spec.scaling_factor), shift = static_cast<float>(spec.shift_factor);
    for (float& value : mean.values) value = (value - shift) * scale;
    for (float& value : std.values) value *= scale;
    return {std::move(mean), std::move(std)};
}

}  // namespace ebca
