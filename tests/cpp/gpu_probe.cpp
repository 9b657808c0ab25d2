// Programs of tests/cpp/test_gpu.py for the GPU's side of the library, on a machine without a GPU. Answers in JSON.
//
//     gpu_probe steps ENGINE ONNXRUNTIME                 every variant of the UNet, on the CPU and on a host driver
//     gpu_probe generate ENGINE ONNXRUNTIME KERNELS      complete generations on both
//     gpu_probe added ENGINE ONNXRUNTIME KERNELS         generations of Stable Diffusion XL with other inputs
//     gpu_probe watch ENGINE ONNXRUNTIME KERNELS         generations that are observed, cancelled, refused, not finite
//     gpu_probe sizes ENGINE ONNXRUNTIME KERNELS         generations of several sizes, opened per size, short of memory
//     gpu_probe threads ENGINE ONNXRUNTIME KERNELS       sessions of several threads on one device
//     gpu_probe kernels ENGINE ONNXRUNTIME KERNELS       every variant with the compiled kernels, which do nothing here
//     gpu_probe launches KERNELS < lines of "variant major minor dtype" and the sizes of `OpShape`
//     gpu_probe sampling KERNELS < lines of "major minor" and the sizes of `sampling_arrays`
//     gpu_probe exclusion KERNELS < lines of "major minor layers layer_stride rows contexts groups height width"
//     gpu_probe backend ONNXRUNTIME [PLUGIN]             opens ONNX Runtime's GPU side
//     gpu_probe components ENGINE ONNXRUNTIME            opens every component of the UNet with the CUDA provider
//     gpu_probe open ENGINE ONNXRUNTIME                  opens an engine on "cuda"
//     gpu_probe assignment GRAPH ONNXRUNTIME PROVIDER    opens a graph on the CPU, asks if it runs on that provider
//     gpu_probe result                                   moves a result to a GPU
//     gpu_probe driver                                   works with the libcuda.so.1 that the loader finds
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "api/structs.hpp"
#include "backends/cpu_backends.hpp"
#include "backends/onnxruntime_gpu.hpp"
#include "backends/ort_assignment.hpp"
#include "contract/sha256.hpp"
#include "devices/cuda_device.hpp"
#include "devices/cuda_driver.hpp"
#include "devices/exclusion_launch.hpp"
#include "devices/sampling_launches.hpp"
#include "engine.hpp"
#include "host_driver.hpp"
#include "session.hpp"

using nlohmann::json;
using namespace ebca::internal;

namespace {

std::shared_ptr<Engine> open(const std::string& path, const std::string& ort, std::shared_ptr<Device> device) {
    EngineOptions options;
    options.path = path;
    CpuBackendOptions cpu;
    cpu.ort_library = ort;
    cpu.threads = 1;
    return std::make_shared<Engine>(options, std::move(device), create_cpu_backend(cpu));
}

void fill(const Tensor& tensor, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::generate_n(tensor.floats(), tensor.count(), [&] { return normal(random); });
}

Control control(const Executor& executor, Variant variant, const std::vector<LayerSpec>& layers, float scale) {
    const Sizes& sizes = executor.sizes();
    int64_t rows = sizes.at("batch"), contexts = sizes.at("contexts"), tokens = sizes.at("tokens");
    variant = plain(variant);
    float step = variant == Variant::attention ? 0.0f : 0.01f * scale;
    Control made{Array({rows, contexts, tokens}, step),
                 Array({rows, contexts}, step),
                 Array({rows, contexts}, scale),
                 tie_matrix(rows, contexts, rows / 2),
                 1.0f,
                 nullptr};
    if (variant == Variant::update_masked) {
        Array mask({1, 1, sizes.at("height"), sizes.at("width")});
        std::fill_n(mask.values.begin(), mask.values.size() / 2, scale);
        made.masks = std::make_shared<const LayerMasks>(layer_masks(mask, layers, sizes));
    }
    return made;
}

bool same(const Tensor& a, const Tensor& b) {
    return std::memcmp(a.data, b.data, static_cast<size_t>(byte_size(a.shape, a.dtype))) == 0;
}

bool moved(const Tensor& tensor) {
    return std::any_of(tensor.floats(), tensor.floats() + tensor.count(), [](float value) { return value != 0; });
}

json counts(const std::map<std::string, int64_t>& after, const std::map<std::string, int64_t>& before) {
    json out = json::object();
    for (const auto& [name, value] : after) {
        auto found = before.find(name);
        int64_t more = value - (found == before.end() ? 0 : found->second);
        if (more) out[name] = more;
    }
    return out;
}

json steps(const std::string& path, const std::string& ort) {
    json out = json::array();
    for (bool refused : {false, true}) {
        auto driver = std::make_shared<HostDriver>();
        driver->refuse_capture = refused;
        std::vector<std::string> warnings;
        auto log = [&](LogLevel, const std::string& line) { warnings.push_back(line); };
        auto gpu = open(path, ort, std::make_shared<CudaDevice>(driver, nullptr, log));
        auto cpu = open(path, ort, std::make_shared<CpuDevice>());
        for (int64_t contexts : {1, 2}) {
            Sizes sizes{{"batch", 2}, {"contexts", contexts}, {"tokens", 77}, {"height", 8}, {"width", 8}};
            auto a = gpu->executor(sizes), b = cpu->executor(sizes);
            for (Variant variant : {Variant::attention, Variant::update, Variant::update_masked}) {
                json one{{"variant", to_string(variant)}, {"contexts", contexts}, {"refused", refused}};
                a->bind(variant);
                auto before = driver->count;
                bool equal = true, any = false;
                for (unsigned number = 0; number < 3; ++number) {
                    for (Executor* executor : {a.get(), b.get()}) {
                        fill(executor->sample(), number);
                        fill(executor->contexts(), 10 + number);
                        std::fill_n(executor->timestep().floats(), 2, 300.0f + static_cast<float>(number));
                        executor->set_control(control(*executor, variant, gpu->manifest().unet.layers,
                                                      1.0f + 0.5f * static_cast<float>(number)));
                        executor->run(variant, nullptr);
                    }
                    equal = equal && same(a->noise(), b->noise()) && same(a->contexts_out(), b->contexts_out());
                    any = any || (moved(a->noise()) && moved(a->contexts_out()));
                }
                one["equal"] = equal && any;
                one["done"] = counts(driver->count, before);
                out.push_back(one);
            }
            Cancellation cancelled;
            cancelled.request();
            try {
                a->run(Variant::attention, &cancelled);
            } catch (const CancelledError& error) {
                out.push_back({{"cancelled", error.what()}});
            }
            std::fill_n(a->sample().floats(), 1, NAN);
            out.push_back({{"nonfinite", a->first_nonfinite(Variant::update)}, {"warnings", warnings}});
        }
        gpu.reset();
        out.push_back({{"live", driver->live.load()}});
    }
    return out;
}

GenerateRequest lion() {
    GenerateRequest request;
    request.conditioning.prompt.texts = {"a lion with a crown"};
    request.steps = 4;
    request.seeds = {3};
    request.scheduler = "ddim";
    request.gamma_attn = {Schedule::Kind::step, 0.01, 0.5, {}};
    return request;
}

GenerateRequest edited_lion() {
    GenerateRequest request = lion();
    Edit edit;
    edit.prompt.texts = {"a crown"};
    edit.alpha.value = 0.5;
    request.edits = {edit};
    return request;
}

// Two subjects, one of them in a given place. pixels: of its mask.
GenerateRequest placed_lion(const std::vector<uint8_t>& pixels) {
    GenerateRequest request = edited_lion();
    request.subject.phrases = {"lion"};
    auto side = static_cast<int64_t>(std::sqrt(static_cast<double>(pixels.size())));
    request.subject.regions = {{"crown", {pixels.data(), side, side, 1}}};
    request.subject.exclusion = {Schedule::Kind::linear, 2.0, 0.1, {}};
    return request;
}

std::vector<uint8_t> half_white(int64_t side) {
    std::vector<uint8_t> pixels(static_cast<size_t>(side * side));
    std::fill_n(pixels.begin(), pixels.size() / 2, uint8_t{255});
    return pixels;
}

bool same(const Result& a, const Result& b) {
    return a.latents.values == b.latents.values && a.pixels == b.pixels && a.timesteps == b.timesteps;
}

// Two generations each on the GPU, the first beside one on the CPU.
json generations(const std::string& path, const std::string& ort, const std::string& kernels) {
    auto driver = std::make_shared<HostDriver>();
    auto set = std::make_shared<GpuKernels>(driver, kernels);
    auto gpu = open(path, ort, std::make_shared<CudaDevice>(driver, set, nullptr));
    auto cpu = open(path, ort, std::make_shared<CpuDevice>());
    GenerateRequest unguided = lion(), multistep = lion(), long_one = lion(), reset = edited_lion();
    unguided.guidance_scale = 1.0;
    multistep.scheduler = "pndm";
    long_one.steps = 70;
    long_one.latents_only = true;
    reset.reset_edits = true;
    json out = json::array();
    {
        Session a(gpu, 0, 0, 1), b(cpu, 0, 0, 1);
        const std::vector<uint8_t> pixels = half_white(a.height());
        GenerateRequest placed = placed_lion(pixels), placed_long = placed, apart = lion();
        placed_long.steps = 70;
        placed_long.latents_only = true;
        apart.subject.phrases = {"lion", "crown"};
        apart.guidance_scale = 1.0;
        for (const GenerateRequest& request : {lion(), edited_lion(), reset, multistep, long_one, lion(), unguided,
                                               placed, placed_long, placed, apart}) {
            auto before = driver->count;
            Result made = a.generate(request), expected = b.generate(request);
            auto first = driver->count;
            Result again = a.generate(request);
            out.push_back({{"equal", same(made, expected) && same(again, expected)},
                           {"pixels", made.pixels.size()},
                           {"evaluations", made.timesteps.size()},
                           {"seconds", made.timings.unet_steps.size()},
                           {"first", counts(first, before)},
                           {"again", counts(driver->count, first)}});
        }
        GenerateRequest painted = placed;
        painted.edits.clear();
        painted.scheduler.clear();
        std::vector<uint8_t> grey(pixels.size(), 128);
        painted.images = {{grey.data(), a.height(), a.width(), 1}};
        painted.masks = {painted.subject.regions[0].mask};
        painted.repaint = RePaint{2, 2, 0, false};
        Result made = a.generate(painted), expected = b.generate(painted);
        painted.subject = {};
        bool differs = made.latents.values != b.generate(painted).latents.values;
        out.push_back({{"equal", same(made, expected)}, {"differs", differs}});
        InvertRequest invert;
        invert.latents = a.generate(lion()).latents;
        invert.conditioning.prompt.texts = {"a lion"};
        invert.steps = 3;
        out.push_back({{"equal", a.invert(invert).latents.values == b.invert(invert).latents.values}});
    }
    gpu.reset();
    set.reset();
    out.push_back({{"live", driver->live.load()}});
    return out;
}

// For Stable Diffusion XL: other second prompts, pooled embeddings and sizes reach what has been recorded already.
json added_inputs(const std::string& path, const std::string& ort, const std::string& kernels) {
    auto driver = std::make_shared<HostDriver>();
    auto set = std::make_shared<GpuKernels>(driver, kernels);
    auto gpu = open(path, ort, std::make_shared<CudaDevice>(driver, set, nullptr));
    auto cpu = open(path, ort, std::make_shared<CpuDevice>());
    GenerateRequest second = lion(), sized = lion(), embedded = lion();
    second.conditioning.prompt.texts_2 = {"a crown"};
    sized.sizes.original = {64, 96};
    sized.negative_sizes.original = sized.negative_sizes.target = {32, 32};
    const UNetSpec& unet = gpu->manifest().unet;
    embedded.conditioning.prompt = {{}, Array({1, 77, unet.context_dim}, 0.5f)};
    embedded.conditioning.prompt.pooled = Array({1, unet.pooled_size()}, 0.25f);
    json out = json::array();
    {
        Session a(gpu, 0, 0, 1), b(cpu, 0, 0, 1);
        std::vector<float> plain = a.generate(lion()).latents.values;
        for (const GenerateRequest& request : {second, sized, embedded}) {
            auto before = driver->count;
            Result made = a.generate(request);
            out.push_back({{"equal", same(made, b.generate(request))},
                           {"differs", made.latents.values != plain},
                           {"done", counts(driver->count, before)}});
        }
    }
    gpu.reset();
    set.reset();
    out.push_back({{"live", driver->live.load()}});
    return out;
}

// A generation that a callback observes; `break_at`: the callback cancels there.
json observed_by(Session& gpu, Session& cpu, HostDriver& driver, int64_t break_at) {
    std::vector<float> seen[2];
    auto watch = [&](std::vector<float>& values) {
        return [&values, break_at](const StepInfo& info) {
            values.insert(values.end(), info.latents.values.begin(), info.latents.values.end());
            values.insert(values.end(), info.contexts.floats(), info.contexts.floats() + info.contexts.count());
            return info.index != break_at;
        };
    };
    GenerateRequest request = edited_lion();
    request.on_step = watch(seen[0]);
    auto before = driver.count;
    json out = json::object();
    try {
        gpu.generate(request);
    } catch (const CancelledError& error) {
        out["cancelled"] = error.what();
    }
    out["done"] = counts(driver.count, before);
    request.on_step = watch(seen[1]);
    try {
        cpu.generate(request);
    } catch (const CancelledError& error) {
        out["cancelled_on_cpu"] = error.what();
    }
    out["equal"] = !seen[0].empty() && seen[0] == seen[1];
    return out;
}

// What a generation does where capture or chaining fails, a callback observes it, or a value is not finite.
json watched(const std::string& path, const std::string& ort, const std::string& kernels) {
    auto cpu = open(path, ort, std::make_shared<CpuDevice>());
    Session b(cpu, 0, 0, 1);
    Result expected = b.generate(lion());
    json out = json::array();
    for (const char* refused : {"", "chain", "capture"}) {
        auto driver = std::make_shared<HostDriver>();
        driver->refuse_chain = std::string(refused) == "chain";
        driver->refuse_capture = std::string(refused) == "capture";
        std::vector<std::string> warnings, notes;
        auto log = [&](LogLevel level, const std::string& line) {
            (level == LogLevel::warning ? warnings : notes).push_back(line);
        };
        auto set = std::make_shared<GpuKernels>(driver, kernels);
        auto gpu = open(path, ort, std::make_shared<CudaDevice>(driver, std::move(set), log));
        Session a(gpu, 0, 0, 1);
        auto before = driver->count;
        json one{{"refused", refused}, {"equal", same(a.generate(lion()), expected)}};
        one["done"] = counts(driver->count, before);
        one["warnings"] = warnings;
        one["notes"] = notes;
        one["observed"] = observed_by(a, b, *driver, -1);
        one["cancelled"] = observed_by(a, b, *driver, 1);
        GenerateRequest wild = lion();
        wild.guidance_scale = 1e38;
        try {
            a.generate(wild);
        } catch (const NumericalError& error) {
            one["bad"] = error.what();
        }
        // A failed run leaves nothing behind.
        one["equal_after"] = same(a.generate(lion()), expected);
        out.push_back(one);
    }
    return out;
}

// ONNX Runtime on the CPU that opens components per size, as its CUDA provider does, and may find too little memory.
class PerSize : public Backend {
  public:
    explicit PerSize(std::shared_ptr<const Backend> inner) : inner_(std::move(inner)) {}
    const std::string& name() const override { return inner_->name(); }
    const std::string& version() const override { return inner_->version(); }
    int threads() const override { return inner_->threads(); }
    bool prepares() const override { return inner_->prepares(); }
    bool fixes_shapes() const override { return true; }
    bool stays_open() const override { return true; }
    bool shares_scratch() const override { return true; }
    std::map<std::string, std::string> identity() const override { return inner_->identity(); }
    void prepare(const std::filesystem::path& graph, const std::filesystem::path& target) const override {
        inner_->prepare(graph, target);
    }
    std::shared_ptr<Runner> open(const std::filesystem::path& prepared, const Component& component,
                                 const Dimensions& dimensions) const override {
        std::string name = prepared.stem().string();
        if (name == short_of && failures-- > 0) throw DeviceMemoryError("the GPU is full", "make a smaller image");
        ++opened[name];
        seen[name] = dimensions;
        return inner_->open(prepared, component, dimensions);
    }

    mutable std::map<std::string, int64_t> opened;
    mutable std::map<std::string, Dimensions> seen;  // the latest
    mutable int failures = 0;
    std::string short_of;  // component whose opening fails that often

  private:
    std::shared_ptr<const Backend> inner_;
};

json sizes(const std::string& path, const std::string& ort, const std::string& kernels) {
    CpuBackendOptions options;
    options.ort_library = ort;
    options.threads = 1;
    auto driver = std::make_shared<HostDriver>();
    auto backend = std::make_shared<PerSize>(create_cpu_backend(options));
    auto set = std::make_shared<GpuKernels>(driver, kernels);
    EngineOptions given;
    given.path = path;
    auto gpu = std::make_shared<Engine>(given, std::make_shared<CudaDevice>(driver, set, nullptr), backend);
    auto cpu = open(path, ort, std::make_shared<CpuDevice>());
    json out = json::array();
    auto generated = [&](const char* name, Session& session, const GenerateRequest& request) {
        auto before = driver->count;
        auto opened = backend->opened;
        Result expected = Session(cpu, session.height(), session.width(), 1).generate(request);
        out.push_back({{"name", name}, {"equal", same(session.generate(request), expected)}});
        out.back()["opened"] = counts(backend->opened, opened);
        out.back()["done"] = counts(driver->count, before);
    };
    {
        Session square(gpu, 0, 0, 1), wide(gpu, square.height(), 2 * square.width(), 1),
            tall(gpu, 2 * square.height(), square.width(), 1);
        generated("square", square, lion());
        out.push_back({{"dimensions",
                        {{"text_encoder", backend->seen["text_encoder"]},
                         {"vae_decoder", backend->seen["vae_decoder"]},
                         {"segment_01", backend->seen["segment_01"]}}}});
        generated("square again", square, lion());
        generated("wide", wide, lion());
        generated("square after wide", square, lion());
        generated("edited", square, edited_lion());
        backend->short_of = "segment_01";
        backend->failures = 1;
        generated("tall, once short of memory", tall, lion());
        generated("tall again", tall, lion());
    }
    backend->failures = 1000;
    try {
        Session(gpu, 0, 0, 2).generate(lion());
    } catch (const DeviceMemoryError& error) {
        out.push_back({{"full", error.what()}});
    }
    gpu.reset();
    set.reset();
    out.push_back({{"live", driver->live.load()}});
    return out;
}

json threads(const std::string& path, const std::string& ort, const std::string& kernels) {
    constexpr int count = 4;
    auto driver = std::make_shared<HostDriver>();
    auto set = std::make_shared<GpuKernels>(driver, kernels);
    auto gpu = open(path, ort, std::make_shared<CudaDevice>(driver, std::move(set), nullptr));
    auto cpu = open(path, ort, std::make_shared<CpuDevice>());
    auto pixels = [](const std::shared_ptr<Engine>& engine, int seed) {
        Session session(engine, 0, 0, 1);
        GenerateRequest request;
        request.conditioning.prompt.texts = {"a lion"};
        request.steps = 2;
        request.seeds = {seed};
        request.gamma_attn.value = 0.01;
        return session.generate(request).pixels;
    };
    std::vector<std::vector<uint8_t>> made(count);
    std::vector<std::thread> running;
    for (int seed = 0; seed < count; ++seed) {
        running.emplace_back([&, seed] { made[seed] = pixels(gpu, seed); });
    }
    for (std::thread& one : running) one.join();
    bool equal = true;
    for (int seed = 0; seed < count; ++seed) equal = equal && made[seed] == pixels(cpu, seed);
    gpu.reset();
    return {{"equal", equal}, {"launches", driver->count["launch"]}, {"live", driver->live.load()}};
}

// Gives kernels to an engine in float32 too: here they compute nothing, and their sizes are the same.
class KernelsForAll : public CudaDevice {
  public:
    using CudaDevice::CudaDevice;
    std::unique_ptr<OpKernel> op(Variant variant, const LayerSpec& layer, DType) override {
        return CudaDevice::op(variant, layer, DType::float16);
    }
};

json with_kernels(const std::string& path, const std::string& ort, const std::string& folder) {
    auto driver = std::make_shared<HostDriver>();
    auto kernels = std::make_shared<GpuKernels>(driver, folder);
    auto engine = open(path, ort, std::make_shared<KernelsForAll>(driver, kernels, nullptr));
    json out = json::array();
    size_t layers = engine->manifest().unet.layers.size();
    {
        auto executor =
            engine->executor({{"batch", 2}, {"contexts", 2}, {"tokens", 77}, {"height", 8}, {"width", 8}}, 3);
        for (Variant variant : {Variant::attention, Variant::update, Variant::update_masked, Variant::attention_guided,
                                Variant::update_guided, Variant::update_masked_guided}) {
            executor->set_control(control(*executor, variant, engine->manifest().unet.layers, 1));
            executor->bind(variant);
            int64_t before = driver->kernels;
            auto counted = driver->count;
            executor->run(variant, nullptr);
            out.push_back({{"variant", to_string(variant)},
                           {"kernels", driver->kernels - before},
                           {"layers", layers},
                           {"biased", engine->manifest().unet.subject_layers->biased.size()},
                           {"done", counts(driver->count, counted)}});
        }
    }
    engine.reset();
    out.push_back({{"live", driver->live.load()}, {"loaded", driver->count["load"]}});
    return out;
}

json as_json(const KernelSet& kernels, const KernelLaunch& one, const Addresses& addresses) {
    std::string hex;
    char digits[3];
    for (std::byte byte : one.pack(addresses)) {
        std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned>(byte));
        hex += digits;
    }
    return {{"kernel", one.binary->kernel},
            {"pack", one.binary->pack()},
            {"offset", one.binary->offset},
            {"grid", one.grid},
            {"threads", one.binary->threads()},
            {"shared_bytes", one.binary->shared_bytes},
            {"image", sha256(kernels.image(*one.binary))},
            {"packed", hex}};
}

// Addresses of a launch's tensors, as the test gives them to Python's launcher.
Addresses addresses_of(const KernelLaunch& launch) {
    Addresses out;
    uint64_t next = 0x7f0000000000;
    for (const Argument& argument : *launch.arguments) {
        std::string name = argument.name.substr(0, argument.name.size() - 4);
        if (argument.type == Argument::Type::pointer) out[name] = next += 4096;
    }
    return out;
}

// The arrays of sampling whose shapes launches depend on.
Tensors sampling_arrays(std::istream& sizes) {
    int64_t images, rows, channels, in_channels, height, width, contexts, tokens, depth, room, words;
    sizes >> images >> rows >> channels >> in_channels >> height >> width >> contexts >> tokens >> depth >> room >>
        words;
    return {{"latents", {nullptr, DType::float32, {images, channels, height, width}}},
            {"sample", {nullptr, DType::float32, {rows, in_channels, height, width}}},
            {"contexts", {nullptr, DType::float32, {rows, contexts, tokens, depth}}},
            {"history", {nullptr, DType::float32, {room, images, channels, height, width}}},
            {"time_embeddings", {nullptr, DType::int32, {words}}}};
}

json sampling_launches(const std::string& folder) {
    KernelSet kernels(folder);
    json out = json::array();
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream sizes(line);
        Capability capability;
        sizes >> capability.first >> capability.second;
        Tensors arrays = sampling_arrays(sizes);
        for (const char* kernel : {"begin", "embed", "end", "advance"}) {
            SamplingLaunch planned = sampling_launch(kernel, arrays);
            KernelLaunch one =
                kernels.launch(std::string("ebca_") + kernel, capability, planned.blocks, planned.values);
            out.push_back(as_json(kernels, one, addresses_of(one)));
        }
    }
    return out;
}

json exclusion_launches(const std::string& folder) {
    KernelSet kernels(folder);
    json out = json::array();
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream sizes(line);
        Capability capability;
        int64_t layers, stride, rows, contexts, groups, height, width;
        sizes >> capability.first >> capability.second >> layers >> stride >> rows >> contexts >> groups >> height >>
            width;
        const Tensors arrays{{"maps", {nullptr, DType::float32, {layers, rows, groups, height * width}}},
                             {"bias", {nullptr, DType::float32, {rows, contexts, groups, height * width}}},
                             {"near", {nullptr, DType::int32, {height, width}}}};
        try {
            SamplingLaunch planned = exclusion_launch(arrays, stride);
            KernelLaunch one = kernels.launch("ebca_exclude", capability, planned.blocks, planned.values);
            out.push_back(as_json(kernels, one, addresses_of(one)));
        } catch (const Error& error) {
            out.push_back({{"error", error.what()}});
        }
    }
    return out;
}

json launches(const KernelSet& kernels, const std::string& line) {
    std::istringstream words(line);
    std::string variant, dtype;
    Capability capability;
    OpShape shape;
    words >> variant >> capability.first >> capability.second >> dtype >> shape.batch >> shape.positions >>
        shape.contexts >> shape.tokens >> shape.heads >> shape.head_dim >> shape.groups;
    std::map<std::string, Variant> variants;
    for (Variant one : {Variant::attention, Variant::update, Variant::update_masked}) {
        for (Variant each : {one, guided(one)}) variants[to_string(each)] = each;
    }
    try {
        OpLaunches made = kernels.launches(variants.at(variant), capability, dtype, shape);
        json out{{"scratch", made.scratch}, {"scratch_bytes", made.scratch_bytes}, {"launches", json::array()}};
        // Addresses as the test gives them to Python's launcher.
        Addresses addresses;
        uint64_t next = 0x7f0000000000;
        for (const char* name :
             {"q", "k", "v", "weights", "gamma_attn", "gamma_norm", "norm_factor", "tie", "mask", "bias",
              "token_groups", "out", "g", "maps", "partial", "column", "norm2", "head_maps"}) {
            addresses[name] = next += 4096;
        }
        for (const KernelLaunch& one : made.launches) out["launches"].push_back(as_json(kernels, one, addresses));
        return out;
    } catch (const Error& error) {
        return {{"error", error.what()}};
    }
}

json all_launches(const std::string& folder) {
    KernelSet kernels(folder);
    json out = json::array();
    for (std::string line; std::getline(std::cin, line);) out.push_back(launches(kernels, line));
    return out;
}

json backend(const std::string& ort, const std::string& plugin) {
    auto made = create_gpu_backend({ort, plugin, 0, nullptr});
    return {{"name", made->name()}};
}

// Two engines in turn: the second has no part in the arena of the first.
json components(const std::string& path, const std::string& ort) {
    EngineDirectory directory = open_directory(path);
    Sizes sizes{{"batch", 2}, {"contexts", 1}, {"tokens", 77}, {"height", 8}, {"width", 8}, {"positions", 64}};
    json out = json::array();
    int stream = 0;
    auto first = create_gpu_backend({ort, "", 0, &stream}), second = create_gpu_backend({ort, "", 0, &stream});
    for (const auto& backend : {first, second}) {
        std::vector<std::shared_ptr<Runner>> opened;
        for (const Step& step : directory.manifest.unet.steps) {
            if (step.is_op()) continue;
            const Component& component = directory.manifest.components.at(step.segment);
            opened.push_back(backend->open(directory.file(component.graph_for(backend->name())), component,
                                           component.dimensions(sizes)));
        }
        out.push_back({{"name", backend->name()},
                       {"opened", opened.size()},
                       {"fixes_shapes", backend->fixes_shapes()},
                       {"shares_scratch", backend->shares_scratch()}});
    }
    return out;
}

json open_on_cuda(const std::string& path, const std::string& ort) {
    EngineOptions options;
    options.path = path;
    options.device = "cuda";
    options.cpu.ort_library = ort;
    Engine engine(options);
    return {{"backend", engine.backend().name()}};
}

json assignment(const std::string& graph, const std::string& path, const std::string& provider) {
    OrtLibrary ort(path, 24);
    OrtPointer<OrtEnv> environment = ort.environment();
    OrtSessionOptions* options = nullptr;
    ort.check(ort.api().CreateSessionOptions(&options), "cannot make session options");
    OrtPointer<OrtSessionOptions> owned(options, {ort.api().ReleaseSessionOptions});
    record_assignment(ort, *options);
    OrtSession* session = nullptr;
    ort.check(ort.api().CreateSession(environment.get(), graph.c_str(), options, &session), "cannot open");
    OrtPointer<OrtSession> opened(session, {ort.api().ReleaseSession});
    check_assignment(ort, *session, "segment", provider);
    return {{"provider", provider}};
}

// Copies in and out, enqueued and in a graph, and one kernel.
json driver() {
    auto driver = std::make_shared<CudaDriver>(0, nullptr);
    json out{{"name", driver->name()}, {"capability", driver->capability()}};
    CudaDevice device(driver, nullptr, nullptr);
    SharedMemory memory(device, {4}, DType::float32);
    const Shared& shared = memory.shared();
    std::fill_n(shared.host.floats(), 4, 3.0f);
    device.upload({shared});
    std::fill_n(shared.host.floats(), 4, 0.0f);
    device.download({shared});
    out["copied"] = shared.host.floats()[3] == 3.0f;
    auto replay = device.record({}, {shared}, {shared});
    std::fill_n(shared.host.floats(), 4, 5.0f);
    replay->run(nullptr);
    float read[4]{};
    device.read(read, shared.array.data, sizeof read);
    out["replayed"] = read[3] == 5.0f;
    // Copies in, then out: as children of one graph.
    auto in = driver->capture([&] { driver->copy_in(shared.array.data, shared.host.data, 16); });
    auto back = driver->capture([&] { driver->copy_out(shared.host.data, shared.array.data, 16); });
    auto both = driver->chain({in.get(), back.get()});
    in.reset();
    back.reset();
    std::fill_n(shared.host.floats(), 4, 7.0f);
    driver->launch(*both);
    device.read(read, shared.array.data, sizeof read);
    out["chained"] = read[3] == 7.0f && shared.host.floats()[3] == 7.0f;
    void* kernel = driver->load("image", "ebca_forward");
    uint64_t parameter = 42;
    void* parameters[] = {&parameter};
    driver->launch_kernel(kernel, {3, 2, 1}, 128, 1024, parameters);
    try {
        driver->capture([] { throw BackendError("not while capturing"); });
    } catch (const BackendError& error) {
        out["refused"] = error.what();
    }
    try {
        device.allocate(int64_t{1} << 40);
    } catch (const OutOfMemoryError& error) {
        out["full"] = error.what();
    }
    return out;
}

std::string refused(Device& device, ebca_result& result) {
    try {
        move_to(device, result);
    } catch (const ParameterError& error) {
        return error.what();
    }
    return "";
}

json result_on_gpu() {
    auto driver = std::make_shared<HostDriver>();
    CudaDevice gpu(driver, nullptr, nullptr);
    CpuDevice cpu;
    Result made;
    made.pixels = {1, 2, 3};
    made.latents = Array({1, 2, 1, 1}, 4.0f);
    made.embeds = Array({1, 1, 3}, 5.0f);
    made.pooled_embeds = Array({1, 3}, 6.0f);
    made.timesteps = {981.0};
    ebca_result* result = handed_over(std::move(made));
    const float* on_host = result->latents.data;
    json out{{"refused", refused(cpu, *result)},
             {"stayed", result->latents.data == on_host && result->memory == EBCA_MEMORY_HOST}};
    move_to(gpu, *result);
    out["blocks"] = driver->live.load();
    out["waited"] = driver->count["synchronize"] > 0;
    out["memory"] = {result->memory, result->latents.memory, result->embeds.memory, result->noise.memory};
    uint8_t pixels[3]{};
    float latents[2]{}, embeds[3]{}, pooled[3]{};
    gpu.read(pixels, result->pixels, sizeof pixels);
    gpu.read(latents, result->latents.data, sizeof latents);
    gpu.read(embeds, result->embeds.data, sizeof embeds);
    gpu.read(pooled, result->pooled_embeds.data, sizeof pooled);
    out["pixels"] = pixels;
    out["latents"] = latents;
    out["embeds"] = embeds;
    out["pooled"] = pooled;
    out["apart"] = result->latents.data != on_host && !result->noise.data;
    out["timestep"] = result->timesteps[0];
    out["twice"] = refused(gpu, *result);
    free_result(result);
    out["left"] = driver->live.load();
    return out;
}

json answer(const std::vector<std::string>& words) {
    const std::string& task = words.at(0);
    if (task == "steps") return steps(words.at(1), words.at(2));
    if (task == "generate") return generations(words.at(1), words.at(2), words.at(3));
    if (task == "added") return added_inputs(words.at(1), words.at(2), words.at(3));
    if (task == "watch") return watched(words.at(1), words.at(2), words.at(3));
    if (task == "sizes") return sizes(words.at(1), words.at(2), words.at(3));
    if (task == "threads") return threads(words.at(1), words.at(2), words.at(3));
    if (task == "kernels") return with_kernels(words.at(1), words.at(2), words.at(3));
    if (task == "launches") return all_launches(words.at(1));
    if (task == "sampling") return sampling_launches(words.at(1));
    if (task == "exclusion") return exclusion_launches(words.at(1));
    if (task == "backend") return backend(words.at(1), words.size() > 2 ? words[2] : "");
    if (task == "components") return components(words.at(1), words.at(2));
    if (task == "open") return open_on_cuda(words.at(1), words.at(2));
    if (task == "assignment") return assignment(words.at(1), words.at(2), words.at(3));
    if (task == "result") return result_on_gpu();
    if (task == "driver") return driver();
    throw std::invalid_argument(task);
}

}  // namespace

int main(int count, char** words) {
    try {
        std::cout << answer({words + 1, words + count}) << std::endl;
    } catch (const Error& error) {
        std::cout << json{{"status", static_cast<int>(error.status())}, {"error", error.what()}} << std::endl;
    }
}
