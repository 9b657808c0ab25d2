// Programs of tests/cpp/test_gpu.py for the GPU's side of the library, on a machine without a GPU. Answers in JSON.
//
//     gpu_probe steps ENGINE ONNXRUNTIME                 every variant of the UNet, on the CPU and on a host driver
//     gpu_probe generate ENGINE ONNXRUNTIME              complete generations on both
//     gpu_probe threads ENGINE ONNXRUNTIME               sessions of several threads on one device
//     gpu_probe kernels ENGINE ONNXRUNTIME KERNELS       every variant with the compiled kernels, which do nothing here
//     gpu_probe launches KERNELS < lines of "variant major minor dtype batch positions contexts tokens heads head_dim";
//                                  variant "embed" launches that sampling kernel for so many positions
//     gpu_probe backend ONNXRUNTIME [PLUGIN]             opens ONNX Runtime's GPU side
//     gpu_probe open ENGINE ONNXRUNTIME                  opens an engine on "cuda"
//     gpu_probe assignment GRAPH ONNXRUNTIME PROVIDER    opens a graph on the CPU, asks if it runs on that provider
//     gpu_probe driver                                   works with the libcuda.so.1 that the loader finds
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "backends/cpu_backends.hpp"
#include "backends/onnxruntime_gpu.hpp"
#include "backends/ort_assignment.hpp"
#include "contract/sha256.hpp"
#include "devices/cuda_device.hpp"
#include "devices/cuda_driver.hpp"
#include "engine.hpp"
#include "host_driver.hpp"
#include "session.hpp"

using nlohmann::json;
using namespace ebca;

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
        auto warn = [&](const std::string& line) { warnings.push_back(line); };
        auto gpu = open(path, ort, std::make_shared<CudaDevice>(driver, nullptr, warn));
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
            std::atomic<bool> cancelled{true};
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

json generations(const std::string& path, const std::string& ort) {
    auto driver = std::make_shared<HostDriver>();
    auto gpu = open(path, ort, std::make_shared<CudaDevice>(driver, nullptr, nullptr));
    auto cpu = open(path, ort, std::make_shared<CpuDevice>());
    json out = json::array();
    {
        Session a(gpu, 0, 0, 1), b(cpu, 0, 0, 1);
        GenerateRequest request;
        request.prompt.texts = {"a lion with a crown"};
        request.steps = 4;
        request.seeds = {3};
        request.scheduler = "ddim";
        request.gamma_attn = {Schedule::Kind::step, 0.01, 0.5, {}};
        Edit edit;
        edit.prompt.texts = {"a crown"};
        edit.alpha.value = 0.5;
        for (bool edited : {false, true}) {
            if (edited) request.edits = {edit};
            auto before = driver->count;
            Result made = a.generate(request), expected = b.generate(request);
            auto first = driver->count;
            a.generate(request);
            out.push_back({{"equal", made.latents.values == expected.latents.values && made.pixels == expected.pixels},
                           {"pixels", made.pixels.size()},
                           {"evaluations", made.timesteps.size()},
                           {"first", counts(first, before)},
                           {"again", counts(driver->count, first)}});
        }
        InvertRequest invert;
        invert.latents = a.generate(request).latents;
        invert.prompt.texts = {"a lion"};
        invert.steps = 3;
        out.push_back({{"equal", a.invert(invert).latents.values == b.invert(invert).latents.values}});
    }
    gpu.reset();
    out.push_back({{"live", driver->live.load()}});
    return out;
}

json threads(const std::string& path, const std::string& ort) {
    constexpr int count = 4;
    auto driver = std::make_shared<HostDriver>();
    auto gpu = open(path, ort, std::make_shared<CudaDevice>(driver, nullptr, nullptr));
    auto cpu = open(path, ort, std::make_shared<CpuDevice>());
    auto pixels = [](const std::shared_ptr<Engine>& engine, int seed) {
        Session session(engine, 0, 0, 1);
        GenerateRequest request;
        request.prompt.texts = {"a lion"};
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
        auto executor = engine->executor({{"batch", 2}, {"contexts", 2}, {"tokens", 77}, {"height", 8}, {"width", 8}});
        for (Variant variant : {Variant::attention, Variant::update, Variant::update_masked}) {
            executor->set_control(control(*executor, variant, engine->manifest().unet.layers, 1));
            executor->bind(variant);
            int64_t before = driver->kernels;
            auto counted = driver->count;
            executor->run(variant, nullptr);
            out.push_back({{"variant", to_string(variant)},
                           {"kernels", driver->kernels - before},
                           {"layers", layers},
                           {"done", counts(driver->count, counted)}});
        }
    }
    engine.reset();
    out.push_back({{"live", driver->live.load()}, {"loaded", driver->count["load"]}});
    return out;
}

json launches(const KernelSet& kernels, const std::string& line) {
    std::istringstream words(line);
    std::string variant, dtype;
    Capability capability;
    OpShape shape;
    words >> variant >> capability.first >> capability.second >> dtype >> shape.batch >> shape.positions >>
        shape.contexts >> shape.tokens >> shape.heads >> shape.head_dim;
    const std::map<std::string, Variant> variants{
        {"attention", Variant::attention}, {"update", Variant::update}, {"update_masked", Variant::update_masked}};
    try {
        OpLaunches made;
        if (variant == "embed") {
            auto size = static_cast<int32_t>(shape.positions);
            made.launches.push_back(kernels.sampling("ebca_embed", capability, size, {{"words", size}}));
        } else {
            made = kernels.launches(variants.at(variant), capability, dtype, shape);
        }
        json out{{"scratch", made.scratch}, {"scratch_bytes", made.scratch_bytes}, {"launches", json::array()}};
        // Addresses as the test gives them to Python's launcher.
        Addresses addresses;
        uint64_t next = 0x7f0000000000;
        for (const char* name : {"q", "k", "v", "weights", "gamma_attn", "gamma_norm", "norm_factor", "tie", "mask",
                                 "out", "g", "partial", "column", "norm2", "step", "embeddings", "embedding_base",
                                 "embedding_stride", "time_embeddings"}) {
            addresses[name] = next += 4096;
        }
        for (const KernelLaunch& one : made.launches) {
            std::string hex;
            char digits[3];
            for (std::byte byte : one.pack(addresses)) {
                std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned>(byte));
                hex += digits;
            }
            out["launches"].push_back({{"kernel", one.binary->kernel},
                                       {"pack", one.binary->pack()},
                                       {"offset", one.binary->offset},
                                       {"grid", one.grid},
                                       {"threads", one.binary->threads()},
                                       {"shared_bytes", one.binary->shared_bytes},
                                       {"image", sha256(kernels.image(*one.binary))},
                                       {"packed", hex}});
        }
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
    } catch (const ParameterError& error) {
        out["full"] = error.what();
    }
    return out;
}

json answer(const std::vector<std::string>& words) {
    const std::string& task = words.at(0);
    if (task == "steps") return steps(words.at(1), words.at(2));
    if (task == "generate") return generations(words.at(1), words.at(2));
    if (task == "threads") return threads(words.at(1), words.at(2));
    if (task == "kernels") return with_kernels(words.at(1), words.at(2), words.at(3));
    if (task == "launches") return all_launches(words.at(1));
    if (task == "backend") return backend(words.at(1), words.size() > 2 ? words[2] : "");
    if (task == "open") return open_on_cuda(words.at(1), words.at(2));
    if (task == "assignment") return assignment(words.at(1), words.at(2), words.at(3));
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
