#include "engine.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <set>

#include "error.hpp"
#include "images/tiling.hpp"
#include "parameters.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

// A component that is opened per size stays open for the sizes that were used last.
constexpr size_t kKeptSizes = 2;
// Texts that a component of fixed shape encodes together: a prompt and its negative prompt.
constexpr int64_t kTextsAtOnce = 2;
// Finding the mappings of a process takes milliseconds. Keep equal to runtime/runners.py.
constexpr int64_t kFewWeightsBytes = int64_t{256} << 20;

Tensor as_tensor(Array& array) {
    return {array.values.data(), DType::float32, array.shape};
}

// `count` rows of token ids from `first` on. Rows are independent; the last one fills up what a component of fixed
// shape expects.
std::vector<int64_t> some_rows(const std::vector<int64_t>& ids, int64_t first, int64_t count, int64_t at_once,
                               int64_t length) {
    auto begin = ids.begin() + first * length, end = begin + count * length;
    std::vector<int64_t> out(begin, end);
    while (count && static_cast<int64_t>(out.size()) < at_once * length) out.insert(out.end(), end - length, end);
    return out;
}

std::unique_ptr<UnpackedDirectory> unpacked_directory(const EngineOptions& options) {
    if (!options.read) return nullptr;
    return std::make_unique<UnpackedDirectory>(options.read, options.cache, options.log);
}

}  // namespace

Engine::Engine(const EngineOptions& options) : log_(options.log) {
    parse_device(options.device);
    unpacked_ = unpacked_directory(options);
    directory_ = open_directory(unpacked_ ? unpacked_->path() : options.path);
    open_device(options);
    start(options);
}

Engine::Engine(const EngineOptions& options, std::shared_ptr<Device> device, std::shared_ptr<const Backend> backend)
    : unpacked_(unpacked_directory(options)),
      directory_(open_directory(unpacked_ ? unpacked_->path() : options.path)),
      device_(std::move(device)),
      backend_(std::move(backend)),
      log_(options.log) {
    start(options);
}

void Engine::open_device(const EngineOptions& options) {
    auto [kind, index] = parse_device(options.device);
    if (kind == "cpu") {
        device_ = std::make_shared<CpuDevice>();
        backend_ = create_cpu_backend(options.cpu, options.log);
        return;
    }
    const CpuBackendOptions& cpu = options.cpu;
    if (!cpu.backend.empty() || !cpu.precision.empty() || !cpu.openvino_library.empty() || cpu.threads) {
        throw ParameterError("backend, precision, threads and openvino_library are for the CPU",
                             "on a GPU the engine directory decides");
    }
    Gpu gpu = open_gpu(index, options.gpu, cpu.ort_library, options.log);
    device_ = std::move(gpu.device);
    backend_ = std::move(gpu.backend);
}

void Engine::start(const EngineOptions& options) {
    prepared_.emplace(directory_, backend_, options.cache, [this](const std::string& message) {
        // For what was unpacked into a temporary folder, one warning says all.
        if (!unpacked_ || !unpacked_->is_temporary()) log(LogLevel::warning, message);
    });
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

std::shared_ptr<Runner> Engine::runner(const std::string& component, const Sizes& sizes) {
    // The device first: executors that bind hold it already.
    auto device = device_->ready();
    std::lock_guard held(lock_);
    Dimensions dimensions;
    if (backend_->fixes_shapes()) dimensions = manifest().components.at(component).dimensions(sizes);
    auto& opened = runners_[component];
    auto found = std::find_if(opened.begin(), opened.end(), [&](const auto& one) { return one.first == dimensions; });
    if (found != opened.end()) {
        opened.splice(opened.begin(), opened, found);
    } else {
        while (opened.size() >= kKeptSizes) opened.pop_back();
        std::shared_ptr<Runner> made = open(component, dimensions);
        runners_[component].emplace_front(std::move(dimensions), std::move(made));
    }
    return runners_[component].front().second;
}

// The device is held: nothing is recorded or launched meanwhile.
std::shared_ptr<Runner> Engine::open(const std::string& component, const Dimensions& dimensions) {
    if (backend_->shares_scratch()) device_->invalidate();
    return with_room([&] { return prepared_->open(component, dimensions); });
}

void Engine::release(const std::string& component) {
    if (backend_->stays_open()) return;
    std::lock_guard held(lock_);
    runners_.erase(component);
}

void Engine::close_idle() {
    auto device = device_->ready();
    std::lock_guard held(lock_);
    for (const std::string& name : text_encoders()) runners_.erase(name);
    if (!manifest().vae) return;
    runners_.erase(manifest().vae->decoder);
    runners_.erase(manifest().vae->encoder);
}

// Run a component once on arrays of the host.
void Engine::evaluate(const std::string& component, const Sizes& sizes, const Tensors& inputs, const Tensors& outputs,
                      Cancellation* cancellation) {
    if (cancellation) cancellation->check(component.c_str());
    with_room([&] {
        auto held = device_->ready();
        std::shared_ptr<Runner> runner = this->runner(component, sizes);
        run_once(*device_, *runner, inputs, outputs, cancellation);
        // A library may keep memory from the first run on.
        if (!backend_->shares_scratch()) return;
        std::lock_guard own(lock_);
        if (settled_.insert(runner).second) device_->invalidate();
    });
}

void Engine::forget_weights() {
    std::vector<std::string> names;
    for (const Step& step : manifest().unet.steps) {
        if (!step.is_op()) names.push_back(step.segment);
    }
    if (!manifest().unet.full.empty()) names.push_back(manifest().unet.full);
    std::set<std::string> files;
    for (const std::string& name : names) {
        for (const std::string& file : manifest().components.at(name).files(backend_->name())) files.insert(file);
    }
    int64_t bytes = 0;
    for (const std::string& file : files) bytes += manifest().files.at(file).size;
    if (bytes >= kFewWeightsBytes) prepared_->forget(names);
}

std::unique_ptr<Executor> Engine::executor(const Sizes& sizes, int64_t groups) {
    const UNetSpec& unet = manifest().unet;
    auto found = unet.channels_last.find(backend_->name());
    auto channels_last = found == unet.channels_last.end() ? std::vector<std::string>() : found->second;
    auto open = [this](const std::string& name, const Sizes& of) { return runner(name, of); };
    try {
        return with_room([&] { return std::make_unique<Executor>(unet, open, sizes, device_, channels_last, groups); });
    } catch (const std::bad_alloc&) {
        throw rules::no_memory(sizes.at("batch"), sizes.at("height"), sizes.at("width"));
    }
}

const PromptTokenizer& Engine::tokenizer() {
    std::lock_guard held(lock_);
    if (!manifest().tokenizer) {
        throw rules::unet_only(platform::to_utf8(directory_.path));
    }
    if (!tokenizer_) {
        const TokenizerSpec& spec = *manifest().tokenizer;
        tokenizer_.emplace(PromptTokenizer::from_json(
            directory_.read(spec.file),
            {spec.model_max_length, spec.bos, spec.eos, spec.pad, spec.pad_2, spec.expansions}));
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

// The component that returns any layer of the text encoder.
const std::string& Engine::layers_component() const {
    const std::string& name = manifest().text_encoder->layers_component;
    if (name.empty()) throw rules::clip_skip_engine();
    return name;
}

// Components that encode texts.
std::vector<std::string> Engine::text_encoders() const {
    if (!manifest().text_encoder) return {};
    const TextEncoderSpec& spec = *manifest().text_encoder;
    return spec.layers_component.empty() ? std::vector{spec.component}
                                         : std::vector{spec.component, spec.layers_component};
}

Embeddings Engine::encode(const TokenIds& ids, int64_t clip_skip, Cancellation* cancellation) {
    if (!manifest().text_encoder) {
        throw rules::no_text_encoder(platform::to_utf8(directory_.path));
    }
    const TextEncoderSpec& spec = *manifest().text_encoder;
    const std::string& component = clip_skip ? layers_component() : spec.component;
    int64_t rows = ids.rows, at_once = backend_->fixes_shapes() ? kTextsAtOnce : rows;
    Embeddings out{Array({rows, spec.max_length, spec.hidden_size}), Array()};
    Embeddings made{Array({at_once, spec.max_length, spec.hidden_size}), Array()};
    if (spec.pooled_size) {
        out.pooled = Array({rows, spec.pooled_size});
        made.pooled = Array({at_once, spec.pooled_size});
    }
    for (int64_t first = 0; first < rows; first += at_once) {
        int64_t count = std::min(at_once, rows - first);
        std::vector<int64_t> given = some_rows(ids.ids, first, count, at_once, spec.max_length), second;
        Shape shape{at_once, spec.max_length};
        Tensors inputs{{"input_ids", {given.data(), DType::int64, shape}}};
        Tensors outputs{{"hidden_states", as_tensor(made.states)}};
        if (spec.pooled_size) {
            second = some_rows(ids.second, first, count, at_once, spec.max_length);
            inputs.emplace_back("input_ids_2", Tensor{second.data(), DType::int64, shape});
            outputs.emplace_back("pooled", as_tensor(made.pooled));
        }
        if (clip_skip) inputs.emplace_back("skip", Tensor{&clip_skip, DType::int64, {1}});
        evaluate(component, {{"batch", at_once}}, inputs, outputs, cancellation);
        std::copy_n(made.states.values.begin(), count * made.states.stride(), out.states.row(first));
        if (spec.pooled_size) {
            std::copy_n(made.pooled.values.begin(), count * made.pooled.stride(), out.pooled.row(first));
        }
    }
    // At SD 1.5 size it holds half a gigabyte that no step needs.
    for (const std::string& name : text_encoders()) release(name);
    return out;
}

// Unscaled latents [1,C,h,w] to an image [1,3,H,W].
Array Engine::decode_tile(Array& latents, Cancellation* cancellation) {
    const VaeSpec& spec = *manifest().vae;
    int64_t height = latents.size(2), width = latents.size(3);
    Array image({1, 3, height * spec.downscale, width * spec.downscale});
    evaluate(spec.decoder, {{"batch", 1}, {"height", height}, {"width", width}}, {{"latents", as_tensor(latents)}},
             {{"image", as_tensor(image)}}, cancellation);
    return image;
}

// An image [1,3,H,W] to the means and the standard deviations of its latents, [1,2C,h,w].
Array Engine::encode_tile(Array& image, Cancellation* cancellation) {
    const VaeSpec& spec = *manifest().vae;
    Shape shape{1, spec.latent_channels, image.size(2) / spec.downscale, image.size(3) / spec.downscale};
    Array both({1, 2 * shape[1], shape[2], shape[3]});
    Tensor mean{both.values.data(), DType::float32, shape}, std = mean;
    std.data = mean.floats() + mean.count();
    evaluate(spec.encoder, {{"batch", 1}, {"height", shape[2]}, {"width", shape[3]}}, {{"image", as_tensor(image)}},
             {{"mean", mean}, {"std", std}}, cancellation);
    return both;
}

Array Engine::decode(const Array& latents, bool tiled, Cancellation* cancellation) {
    if (!manifest().vae) throw rules::no_vae_to_decode();
    const VaeSpec& spec = *manifest().vae;
    if (latents.size(1) != spec.latent_channels) {
        throw rules::latents_channels(latents.size(1), spec.latent_channels);
    }
    auto scale = static_cast<float>(spec.scaling_factor), shift = static_cast<float>(spec.shift_factor);
    Array images({latents.size(0), 3, latents.size(2) * spec.downscale, latents.size(3) * spec.downscale});
    int64_t side = tile_side(manifest().unet.sample_size);
    tiled = tiled && is_tiled(latents.size(2), latents.size(3), side);
    auto run = [&](Array& tile) { return decode_tile(tile, cancellation); };
    for (int64_t n = 0; n < latents.size(0); ++n) {
        Array one({1, latents.size(1), latents.size(2), latents.size(3)});
        std::transform(latents.row(n), latents.row(n) + latents.stride(), one.values.begin(),
                       [&](float value) { return value / scale + shift; });
        const Array made = tiled ? in_tiles(one, run, side, side * spec.downscale) : run(one);
        std::copy(made.values.begin(), made.values.end(), images.row(n));
    }
    return images;
}

std::shared_ptr<const Preview> Engine::preview() {
    {
        std::lock_guard held(lock_);
        if (preview_) return preview_;
    }
    if (!manifest().vae) throw rules::no_vae_to_decode();
    const VaeSpec& vae = *manifest().vae;
    // Without the lock, since it takes a moment. Threads that meet here make the same.
    auto made = std::make_shared<const Preview>(
        vae.latent_channels, vae.downscale, [this](const Array& latents) { return decode(latents, false, nullptr); });
    std::lock_guard held(lock_);
    preview_ = made;
    return made;
}

void Engine::warm_up_decoder(const Shape& latents, bool tiled) {
    if (!manifest().vae || !backend_->shares_scratch()) return;
    Shape one = latents;
    one.at(0) = 1;
    if (tiled) {
        int64_t side = tile_side(manifest().unet.sample_size);
        one.at(2) = std::min(one.at(2), side);
        one.at(3) = std::min(one.at(3), side);
    }
    Sizes sizes{{"batch", 1}, {"height", one.at(2)}, {"width", one.at(3)}};
    std::shared_ptr<Runner> decoder = runner(manifest().vae->decoder, sizes);
    {
        std::lock_guard held(lock_);
        if (settled_.count(decoder)) return;
    }
    decode(Array(one), false, nullptr);
}

std::pair<Array, Array> Engine::encode_image(const Array& pixels, bool tiled, Cancellation* cancellation) {
    if (!manifest().vae) throw rules::no_vae_for_image(platform::to_utf8(directory_.path));
    const VaeSpec& spec = *manifest().vae;
    int64_t n = pixels.size(0), height = pixels.size(1), width = pixels.size(2), plane = height * width;
    Shape shape{n, spec.latent_channels, height / spec.downscale, width / spec.downscale};
    Array mean(shape), std(shape);
    int64_t side = tile_side(manifest().unet.sample_size);
    tiled = tiled && is_tiled(shape[2], shape[3], side);
    auto run = [&](Array& tile) { return encode_tile(tile, cancellation); };
    for (int64_t row = 0; row < n; ++row) {
        Array image({1, 3, height, width});
        for (int64_t i = 0; i < plane; ++i) {
            for (int64_t c = 0; c < 3; ++c) {
                image.values[static_cast<size_t>(c * plane + i)] = pixels.row(row)[i * 3 + c] * 2.0f - 1.0f;
            }
        }
        const Array both = tiled ? in_tiles(image, run, side * spec.downscale, side) : run(image);
        std::copy_n(both.values.data(), mean.stride(), mean.row(row));
        std::copy_n(both.values.data() + mean.stride(), std.stride(), std.row(row));
    }
    // Not needed until the next image is passed in.
    release(spec.encoder);
    auto scale = static_cast<float>(spec.scaling_factor), shift = static_cast<float>(spec.shift_factor);
    for (float& value : mean.values) value = (value - shift) * scale;
    for (float& value : std.values) value *= scale;
    return {std::move(mean), std::move(std)};
}

}  // namespace ebca::internal
