#include "devices/cuda_driver.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>

#include "devices/cuda_api.hpp"
#include "error.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

// Null: there is none.
std::shared_ptr<const CudaFunctions> find_driver() {
    // Never closed: the driver does not survive it.
    std::string reason;
    void* library = platform::load(platform::cuda_driver_name(), platform::Symbols::own, reason);
    if (!library) return nullptr;
    auto api = std::make_shared<CudaFunctions>();
    for_each_function(*api, [&](const char* name, auto& function) {
        function = reinterpret_cast<std::decay_t<decltype(function)>>(platform::find_symbol(library, name));
        if (!function)
            throw BackendError(text("the NVIDIA driver is too old: it has no ", name), "install a newer one");
    });
    return api;
}

std::shared_ptr<const CudaFunctions> load_driver() {
    auto api = find_driver();
    if (!api) {
        throw BackendError(text("there is no NVIDIA driver (", platform::cuda_driver_name(), " cannot be loaded)"),
                           "install one, or use device 'cpu'");
    }
    return api;
}

void check_call(const CudaFunctions& api, int status, const char* call) {
    if (status == kCudaSuccess) return;
    const char* reason = nullptr;
    api.cuGetErrorString(status, &reason);
    throw BackendError(text(call, " failed: ", reason ? reason : "", " (error ", status, ")"),
                       "`nvidia-smi` shows whether the GPU and its driver are fine");
}

Capability capability_of(const CudaFunctions& api, int device) {
    Capability out;
    check_call(api, api.cuDeviceGetAttribute(&out.first, kCapabilityMajor, device), "cuDeviceGetAttribute");
    check_call(api, api.cuDeviceGetAttribute(&out.second, kCapabilityMinor, device), "cuDeviceGetAttribute");
    return out;
}

CudaAddress address(const void* memory) {
    return reinterpret_cast<CudaAddress>(memory);
}

// For calls from threads that have a context of their own current.
class ForNow {
  public:
    ForNow(const CudaFunctions& api, void* context) : api_(api) { api_.cuCtxPushCurrent_v2(context); }
    ~ForNow() {
        void* popped = nullptr;
        api_.cuCtxPopCurrent_v2(&popped);
    }
    ForNow(const ForNow&) = delete;
    ForNow& operator=(const ForNow&) = delete;

  private:
    const CudaFunctions& api_;
};

class CudaGraph : public Graph {
  public:
    CudaGraph(std::shared_ptr<const CudaFunctions> api, void* context, void* definition, void* executable)
        : definition(definition), executable(executable), api_(std::move(api)), context_(context) {}
    ~CudaGraph() override {
        ForNow held(*api_, context_);
        api_->cuGraphExecDestroy(executable);
        api_->cuGraphDestroy(definition);
    }
    CudaGraph(const CudaGraph&) = delete;
    CudaGraph& operator=(const CudaGraph&) = delete;

    void* const definition;
    void* const executable;

  private:
    std::shared_ptr<const CudaFunctions> api_;
    void* context_;
};

}  // namespace

std::vector<GpuInfo> list_gpus() {
    std::vector<GpuInfo> out;
    auto api = find_driver();
    int status = api ? api->cuInit(0) : kCudaNoDevice, count = 0;
    if (status == kCudaNoDevice) return out;
    check_call(*api, status, "cuInit");
    check_call(*api, api->cuDeviceGetCount(&count), "cuDeviceGetCount");
    for (int index = 0; index < count; ++index) {
        int device = 0;
        char name[256] = "";
        size_t bytes = 0;
        check_call(*api, api->cuDeviceGet(&device, index), "cuDeviceGet");
        check_call(*api, api->cuDeviceGetName(name, sizeof name - 1, device), "cuDeviceGetName");
        check_call(*api, api->cuDeviceTotalMem_v2(&bytes, device), "cuDeviceTotalMem");
        out.push_back({name, static_cast<int64_t>(bytes), capability_of(*api, device)});
    }
    return out;
}

CudaDriver::CudaDriver(int index, void* stream)
    : api_(load_driver()), name_(text("cuda:", index)), index_(index), stream_(stream) {
    int status = api_->cuInit(0), count = 0;
    if (status == kCudaNoDevice) throw BackendError("there is a driver, but no NVIDIA GPU", "use device 'cpu'");
    check(status, "cuInit");
    check(api_->cuDeviceGetCount(&count), "cuDeviceGetCount");
    if (index >= count) {
        throw BackendError(text("device '", name_, "' is not there"),
                           text("GPUs on this machine: ", count, ", from cuda:0 on"));
    }
    check(api_->cuDeviceGet(&device_, index), "cuDeviceGet");
    capability_ = capability_of(*api_, device_);
    check(api_->cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain");
    try {
        enter();
        if (!stream_) {
            check(api_->cuStreamCreate(&stream_, kNonBlockingStream), "cuStreamCreate");
            own_stream_ = true;
        }
    } catch (...) {
        api_->cuDevicePrimaryCtxRelease_v2(device_);
        throw;
    }
}

CudaDriver::~CudaDriver() {
    {
        ForNow held(*api_, context_);
        for (void* module : modules_) api_->cuModuleUnload(module);
        if (own_stream_) api_->cuStreamDestroy_v2(stream_);
    }
    api_->cuDevicePrimaryCtxRelease_v2(device_);
}

void CudaDriver::check(int status, const char* call) const {
    check_call(*api_, status, call);
}

void CudaDriver::enter() {
    check(api_->cuCtxSetCurrent(context_), "cuCtxSetCurrent");
}

void* CudaDriver::allocate(int64_t bytes) {
    CudaAddress made = 0;
    auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
    int status = api_->cuMemAlloc_v2(&made, size);
    if (status == kCudaOutOfMemory) throw std::bad_alloc();
    check(status, "cuMemAlloc");
    if (status = api_->cuMemsetD8Async(made, 0, size, stream_); status != kCudaSuccess) {
        api_->cuMemFree_v2(made);
        check(status, "cuMemsetD8Async");
    }
    return reinterpret_cast<void*>(made);
}

void CudaDriver::free(void* memory) noexcept {
    ForNow held(*api_, context_);
    api_->cuMemFree_v2(address(memory));
}

void* CudaDriver::allocate_host(int64_t bytes) {
    void* made = nullptr;
    auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
    int status = api_->cuMemHostAlloc(&made, size, 0);
    if (status == kCudaOutOfMemory) throw std::bad_alloc();
    check(status, "cuMemHostAlloc");
    std::memset(made, 0, size);
    return made;
}

void CudaDriver::free_host(void* memory) noexcept {
    ForNow held(*api_, context_);
    api_->cuMemFreeHost(memory);
}

void CudaDriver::copy_in(void* device, const void* host, int64_t bytes) {
    check(api_->cuMemcpyHtoDAsync_v2(address(device), host, static_cast<size_t>(bytes), stream_), "cuMemcpyHtoDAsync");
}

void CudaDriver::copy_out(void* host, const void* device, int64_t bytes) {
    check(api_->cuMemcpyDtoHAsync_v2(host, address(device), static_cast<size_t>(bytes), stream_), "cuMemcpyDtoHAsync");
}

void CudaDriver::submit(Call& call) {
    call.run();
}

std::unique_ptr<Graph> CudaDriver::capture(const std::function<void()>& enqueue) {
    check(api_->cuStreamBeginCapture_v2(stream_, kRelaxedCapture), "cuStreamBeginCapture");
    std::string refused;
    try {
        enqueue();
    } catch (const std::exception& error) {
        refused = error.what();
    }
    // If it were not ended, the stream would stay in capture.
    void* graph = nullptr;
    int status = api_->cuStreamEndCapture(stream_, &graph);
    // The engine may have moved the thread to a context of its own.
    enter();
    if (!refused.empty()) {
        if (graph) api_->cuGraphDestroy(graph);
        throw BackendError(text("the step cannot be captured: ", refused));
    }
    check(status, "cuStreamEndCapture");
    return instantiated(graph);
}

std::unique_ptr<Graph> CudaDriver::chain(const std::vector<const Graph*>& graphs) {
    void *parent = nullptr, *last = nullptr;
    check(api_->cuGraphCreate(&parent, 0), "cuGraphCreate");
    for (const Graph* graph : graphs) {
        void *node = nullptr, *child = static_cast<const CudaGraph*>(graph)->definition;
        // The parent gets a copy of the child.
        int status = api_->cuGraphAddChildGraphNode(&node, parent, &last, last ? 1 : 0, child);
        if (status != kCudaSuccess) api_->cuGraphDestroy(parent);
        check(status, "cuGraphAddChildGraphNode");
        last = node;
    }
    return instantiated(parent);
}

std::unique_ptr<Graph> CudaDriver::instantiated(void* definition) {
    void* executable = nullptr;
    int status = api_->cuGraphInstantiateWithFlags(&executable, definition, 0);
    if (status != kCudaSuccess) api_->cuGraphDestroy(definition);
    check(status, "cuGraphInstantiate");
    return std::make_unique<CudaGraph>(api_, context_, definition, executable);
}

void CudaDriver::launch(Graph& graph) {
    check(api_->cuGraphLaunch(static_cast<CudaGraph&>(graph).executable, stream_), "cuGraphLaunch");
}

void CudaDriver::synchronize() {
    check(api_->cuStreamSynchronize(stream_), "cuStreamSynchronize");
}

void* CudaDriver::load(const std::string& image, const std::string& kernel) {
    void *module = nullptr, *function = nullptr;
    // A string ends in the zero byte that PTX text needs.
    check(api_->cuModuleLoadData(&module, image.c_str()), "cuModuleLoadData");
    modules_.push_back(module);
    check(api_->cuModuleGetFunction(&function, module, kernel.c_str()), "cuModuleGetFunction");
    return function;
}

void CudaDriver::launch_kernel(void* kernel, const std::array<uint32_t, 3>& grid, uint32_t threads,
                               uint32_t shared_bytes, void** parameters) {
    check(api_->cuLaunchKernel(kernel, grid[0], grid[1], grid[2], threads, 1, 1, shared_bytes, stream_, parameters,
                               nullptr),
          "cuLaunchKernel");
}

}  // namespace ebca::internal
