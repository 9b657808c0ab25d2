#include "backends/onnxruntime_gpu.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "backends/ort_assignment.hpp"
#include "backends/ort_binding.hpp"
#include "backends/ort_library.hpp"
#include "error.hpp"
#include "memory.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {

#if ORT_API_VERSION >= 24

namespace {

// The first that says which provider an operator was given to.
constexpr uint32_t kGpuApiVersion = 24;

namespace fs = std::filesystem;

constexpr const char* kCuda = "CUDAExecutionProvider";
constexpr const char* kTensorRtRtx = "NvTensorRTRTXExecutionProvider";
// Name of the plugin in ONNX Runtime's environment.
constexpr const char* kRegistration = "ebca.tensorrt-rtx";
// What the plugin needs and the loader does not find, in order; they are in its folder.
constexpr const char* kBesidePlugin[] = {"libcudart.so", "libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so"};

using Options = std::vector<std::pair<std::string, std::string>>;

struct Pointers {
    explicit Pointers(const Options& options) {
        for (const auto& [key, value] : options) {
            keys.push_back(key.c_str());
            values.push_back(value.c_str());
        }
    }
    std::vector<const char*> keys, values;
};

// Weights stay out of the arena: it never gives memory back, and graphs use what is free in it as scratch.
constexpr const char* kWeightsApart = "session.use_device_allocator_for_initializers";

// The one that may use the arena of a GPU: a library has one per GPU, and what one session frees there, the next one
// uses at once, which is right on one stream and a race between two. Null if another holds it.
std::shared_ptr<void> claim_arena(const OrtEnv* environment, int index) {
    static std::mutex lock;
    static std::map<std::pair<const OrtEnv*, int>, std::weak_ptr<void>> users;
    std::lock_guard held(lock);
    std::weak_ptr<void>& user = users[{environment, index}];
    if (!user.expired()) return nullptr;
    auto made = std::make_shared<int>();
    user = made;
    return made;
}

class OnnxRuntimeGpu : public Backend, public std::enable_shared_from_this<OnnxRuntimeGpu> {
  public:
    OnnxRuntimeGpu(const GpuBackendOptions& options, const std::string& plugin)
        : library_(options.ort_library, kGpuApiVersion),
          environment_(library_.environment()),
          name_(plugin.empty() ? "onnxruntime-cuda" : "onnxruntime-tensorrt-rtx"),
          provider_(plugin.empty() ? kCuda : kTensorRtRtx),
          index_(options.index),
          stream_(options.stream),
          log_(options.log) {
        if (plugin.empty()) {
            check_cuda_provider();
            arena_ = claim_arena(environment_.get(), index_);
            if (arena_) register_arena();
        } else {
            device_ = plugin_device(plugin);
        }
    }

    const std::string& name() const override { return name_; }
    const std::string& version() const override { return library_.version(); }
    int threads() const override { return 1; }
    bool prepares() const override { return false; }
    bool fixes_shapes() const override { return !device_; }
    bool stays_open() const override { return true; }
    bool shares_scratch() const override { return !device_; }
    std::map<std::string, std::string> identity() const override { return {{name_, library_.version()}}; }
    void prepare(const fs::path& graph, const fs::path&) const override {
        throw BackendError(text(name_, " prepares nothing, and was asked to for '", platform::to_utf8(graph), "'"));
    }
    std::shared_ptr<Runner> open(const fs::path& graph, const Component& component,
                                 const Dimensions& dimensions) const override;

    // As OrtLibrary::check; DeviceMemoryError if memory is short.
    void check(OrtStatus* status, const std::string& doing) const;

    const OrtLibrary& library() const { return library_; }
    // Where its arrays are.
    OrtPointer<OrtMemoryInfo> place() const;

  private:
    void check_cuda_provider() const;
    void register_arena() const;
    void set(OrtSessionOptions& options, const char* key, const char* value) const;
    const OrtEpDevice* plugin_device(const std::string& plugin) const;
    std::vector<const OrtEpDevice*> plugin_devices() const;
    void append_cuda(OrtSessionOptions& options) const;
    void append_plugin(OrtSessionOptions& options) const;

    OrtLibrary library_;
    OrtPointer<OrtEnv> environment_;
    std::string name_;
    std::string provider_;
    int index_;
    void* stream_;
    Log log_;
    const OrtEpDevice* device_ = nullptr;  // the plugin's; belongs to the environment
    std::shared_ptr<void> arena_;          // null: sessions have arenas of their own
};

class GpuRunner : public Runner, public std::enable_shared_from_this<GpuRunner> {
  public:
    GpuRunner(std::shared_ptr<const OnnxRuntimeGpu> backend, OrtPointer<OrtSession> session, std::string name);
    std::unique_ptr<Call> bind(const Tensors& inputs, const Tensors& outputs) const override;
    void run(const OrtIoBinding& binding) const;

  private:
    std::shared_ptr<const OnnxRuntimeGpu> backend_;
    OrtPointer<OrtSession> session_;
    OrtPointer<OrtRunOptions> asynchronous_;
    std::string name_;
    std::set<std::string> inputs_;
};

class GpuCall : public Call {
  public:
    GpuCall(std::shared_ptr<const GpuRunner> runner, OrtPointer<OrtIoBinding> binding)
        : runner_(std::move(runner)), binding_(std::move(binding)) {}
    void run() override { runner_->run(*binding_); }

  private:
    std::shared_ptr<const GpuRunner> runner_;
    OrtPointer<OrtIoBinding> binding_;
};

GpuRunner::GpuRunner(std::shared_ptr<const OnnxRuntimeGpu> backend, OrtPointer<OrtSession> session, std::string name)
    : backend_(std::move(backend)),
      session_(std::move(session)),
      name_(std::move(name)),
      inputs_(input_names(backend_->library(), *session_)) {
    const OrtLibrary& ort = backend_->library();
    OrtRunOptions* raw = nullptr;
    ort.check(ort.api().CreateRunOptions(&raw), "cannot make run options");
    asynchronous_ = OrtPointer<OrtRunOptions>(raw, {ort.api().ReleaseRunOptions});
    ort.check(ort.api().AddRunConfigEntry(raw, "disable_synchronize_execution_providers", "1"),
              "cannot leave a run asynchronous");
}

std::unique_ptr<Call> GpuRunner::bind(const Tensors& inputs, const Tensors& outputs) const {
    return std::make_unique<GpuCall>(shared_from_this(), bind_arrays(backend_->library(), *session_, name_, inputs_,
                                                                     *backend_->place(), inputs, outputs));
}

void GpuRunner::run(const OrtIoBinding& binding) const {
    const OrtLibrary& ort = backend_->library();
    backend_->check(ort.api().RunWithBinding(session_.get(), asynchronous_.get(), &binding),
                    text("cannot run ", name_));
}

void OnnxRuntimeGpu::check_cuda_provider() const {
    char** names = nullptr;
    int count = 0;
    library_.check(library_.api().GetAvailableProviders(&names, &count), "cannot list its providers");
    bool found = std::any_of(names, names + count, [](const char* name) { return std::strcmp(name, kCuda) == 0; });
    library_.check(library_.api().ReleaseAvailableProviders(names, count), "cannot free its providers");
    if (found) return;
    throw BackendError(text("onnxruntime ", library_.version(), " is built without CUDA"),
                       "name the library of an onnxruntime-gpu package in the parameters or in EBCA_ORT_LIB, or the "
                       "provider of TensorRT for RTX in EBCA_TRT_RTX_EP_LIB");
}

void OnnxRuntimeGpu::check(OrtStatus* status, const std::string& doing) const {
    if (status) {
        std::string message = library_.api().GetErrorMessage(status);
        if (is_about_memory(message)) {
            library_.api().ReleaseStatus(status);
            throw DeviceMemoryError(text("the GPU has too little memory left (onnxruntime ", library_.version(), " ",
                                         doing, ": ", message.substr(0, message.find('\n')), ")"),
                                    kLessMemory);
        }
    }
    library_.check(status, doing);
}

void OnnxRuntimeGpu::register_arena() const {
    const OrtApi& api = library_.api();
    // Grow by what is requested, without bounds otherwise.
    const char* keys[] = {"arena_extend_strategy"};
    const size_t values[] = {1};
    OrtArenaCfg* made = nullptr;
    library_.check(api.CreateArenaCfgV2(keys, values, 1, &made), "cannot set up its arena");
    OrtPointer<OrtArenaCfg> arena(made, {api.ReleaseArenaCfg});
    OrtMemoryInfo* named = nullptr;
    library_.check(api.CreateMemoryInfo("Cuda", OrtArenaAllocator, index_, OrtMemTypeDefault, &named),
                   "cannot name the GPU");
    OrtPointer<OrtMemoryInfo> memory(named, {api.ReleaseMemoryInfo});
    const std::string index = std::to_string(index_);
    const char *option = "device_id", *value = index.c_str();
    OrtStatus* status =
        api.CreateAndRegisterAllocatorV2(environment_.get(), kCuda, memory.get(), arena.get(), &option, &value, 1);
    // An engine that was open before has registered it: the process has one environment.
    if (status && std::strstr(api.GetErrorMessage(status), "already")) {
        api.ReleaseStatus(status);
    } else {
        library_.check(status, "cannot register its arena");
    }
}

void OnnxRuntimeGpu::set(OrtSessionOptions& options, const char* key, const char* value) const {
    library_.check(library_.api().AddSessionConfigEntry(&options, key, value), text("refuses the option ", key));
}

std::vector<const OrtEpDevice*> OnnxRuntimeGpu::plugin_devices() const {
    const OrtApi& api = library_.api();
    const OrtEpDevice* const* devices = nullptr;
    size_t count = 0;
    library_.check(api.GetEpDevices(environment_.get(), &devices, &count), "cannot list devices");
    std::vector<const OrtEpDevice*> out;
    for (size_t i = 0; i < count; ++i) {
        bool on_gpu = api.HardwareDevice_Type(api.EpDevice_Device(devices[i])) == OrtHardwareDeviceType_GPU;
        if (on_gpu && provider_ == api.EpDevice_EpName(devices[i])) out.push_back(devices[i]);
    }
    return out;
}

const OrtEpDevice* OnnxRuntimeGpu::plugin_device(const std::string& plugin) const {
    const OrtApi& api = library_.api();
    std::vector<const OrtEpDevice*> devices = plugin_devices();
    // An engine that is open already has registered it: the process has one environment.
    if (devices.empty()) {
        fs::path folder = fs::absolute(plugin).parent_path();
        for (const char* needed : kBesidePlugin) {
            for (const fs::path& file : platform::entries_of(folder)) {
                // The registration below reports which of them is missing.
                std::string reason;
                if (platform::to_utf8(file.filename()).rfind(needed, 0) == 0 &&
                    platform::load(file, platform::Symbols::shared, reason)) {
                    break;
                }
            }
        }
        library_.check(
            api.RegisterExecutionProviderLibrary(environment_.get(), kRegistration, platform::to_path(plugin).c_str()),
            text("cannot load the provider '", plugin, "'"));
        devices = plugin_devices();
    }
    for (const OrtEpDevice* device : devices) {
        const OrtMemoryInfo* memory = api.EpDevice_MemoryInfo(device, OrtDeviceMemoryType_DEFAULT);
        int index = -1;
        if (memory) library_.check(api.MemoryInfoGetId(memory, &index), "cannot tell a device's number");
        if (index == index_) return device;
    }
    throw BackendError(text("TensorRT for RTX knows ", devices.size(), " GPUs and not cuda:", index_),
                       "it needs compute capability 8.6, 8.9, or 12.0 and above; use the CUDA provider instead");
}

OrtPointer<OrtMemoryInfo> OnnxRuntimeGpu::place() const {
    const OrtApi& api = library_.api();
    OrtMemoryInfo* made = nullptr;
    const char* name = "Cuda";
    if (device_) {
        const OrtMemoryInfo* memory = api.EpDevice_MemoryInfo(device_, OrtDeviceMemoryType_DEFAULT);
        library_.check(api.MemoryInfoGetName(memory, &name), "cannot name the GPU");
        library_.check(api.CreateMemoryInfo_V2(name, OrtMemoryInfoDeviceType_GPU, api.MemoryInfoGetVendorId(memory),
                                               index_, OrtDeviceMemoryType_DEFAULT, 0, OrtDeviceAllocator, &made),
                       "cannot name the GPU");
    } else {
        library_.check(api.CreateMemoryInfo(name, OrtDeviceAllocator, index_, OrtMemTypeDefault, &made),
                       "cannot name the GPU");
    }
    return OrtPointer<OrtMemoryInfo>(made, {api.ReleaseMemoryInfo});
}

void OnnxRuntimeGpu::append_cuda(OrtSessionOptions& options) const {
    const OrtApi& api = library_.api();
    OrtCUDAProviderOptionsV2* raw = nullptr;
    library_.check(api.CreateCUDAProviderOptions(&raw), "cannot use CUDA");
    std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(api.ReleaseCUDAProviderOptions)> cuda(
        raw, api.ReleaseCUDAProviderOptions);
    const Options chosen{{"device_id", std::to_string(index_)},
                         // Convolutions of ONNX Runtime are a quarter faster with channels last.
                         {"prefer_nhwc", "1"},
                         // Doubling would reserve gigabytes for the largest layer.
                         {"arena_extend_strategy", "kSameAsRequested"},
                         // The search for the fastest convolution would reserve as much as the slowest candidate needs,
                         // and gains nothing.
                         {"cudnn_conv_use_max_workspace", "0"},
                         {"enable_cuda_graph", "0"}};
    Pointers pointers(chosen);
    library_.check(api.UpdateCUDAProviderOptions(raw, pointers.keys.data(), pointers.values.data(), chosen.size()),
                   "refuses the options of CUDA");
    library_.check(api.UpdateCUDAProviderOptionsWithValue(raw, "user_compute_stream", stream_),
                   "refuses the CUDA stream");
    library_.check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(&options, raw), "cannot use CUDA");
    set(options, kWeightsApart, "1");
    if (arena_) set(options, "session.use_env_allocators", "1");
}

void OnnxRuntimeGpu::append_plugin(OrtSessionOptions& options) const {
    const OrtApi& api = library_.api();
    const Options chosen{{"has_user_compute_stream", "1"},
                         {"user_compute_stream", std::to_string(reinterpret_cast<uintptr_t>(stream_))},
                         {"enable_cuda_graph", "0"}};
    Pointers pointers(chosen);
    library_.check(
        api.SessionOptionsAppendExecutionProvider_V2(&options, environment_.get(), &device_, 1, pointers.keys.data(),
                                                     pointers.values.data(), chosen.size()),
        "cannot use TensorRT for RTX");
    // This cannot be requested with CUDA, where shapes are computed on the host.
    set(options, "session.disable_cpu_ep_fallback", "1");
}

std::shared_ptr<Runner> OnnxRuntimeGpu::open(const fs::path& graph, const Component&,
                                             const Dimensions& dimensions) const {
    const OrtApi& api = library_.api();
    // The host computes shapes only.
    OrtPointer<OrtSessionOptions> options = session_options(library_, threads(), log_);
    record_assignment(library_, *options);
    for (const auto& [name, size] : dimensions) {
        library_.check(api.AddFreeDimensionOverrideByName(options.get(), name.c_str(), size),
                       text("cannot fix the dimension ", name));
    }
    device_ ? append_plugin(*options) : append_cuda(*options);
    OrtSession* made = nullptr;
    check(api.CreateSession(environment_.get(), graph.c_str(), options.get(), &made),
          text("cannot open '", platform::to_utf8(graph), "' on the GPU"));
    OrtPointer<OrtSession> session(made, {api.ReleaseSession});
    check_assignment(library_, *session, platform::to_utf8(graph.filename()), provider_);
    return std::make_shared<GpuRunner>(shared_from_this(), std::move(session), platform::to_utf8(graph.stem()));
}

}  // namespace

std::shared_ptr<const Backend> create_gpu_backend(const GpuBackendOptions& options) {
    std::string plugin = options.tensorrt_rtx_library;
    if (plugin.empty()) plugin = platform::variable("EBCA_TRT_RTX_EP_LIB");
    return std::make_shared<const OnnxRuntimeGpu>(options, plugin);
}

#else

std::shared_ptr<const Backend> create_gpu_backend(const GpuBackendOptions&) {
    throw UnsupportedError(text("this library was built with headers of ONNX Runtime 1.", ORT_API_VERSION,
                                ", which cannot say where a graph runs"),
                           "build it with those of 1.24 or newer for a GPU");
}

#endif

}  // namespace ebca::internal
