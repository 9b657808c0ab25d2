// A libcuda.so.1 over host memory, so that the code that talks to the driver runs without one. It counts what
// is made and freed, and calls in an order or a context that the driver would refuse; at the end of the process
// it writes both to the file FAKE_CUDA_REPORT.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "devices/cuda_api.hpp"

using namespace ebca::internal;

namespace {

constexpr int kInvalidValue = 1, kInvalidContext = 201, kCapturing = 900;

using Work = std::function<void()>;

struct State {
    ~State() {
        const char* path = std::getenv("FAKE_CUDA_REPORT");
        std::FILE* file = path ? std::fopen(path, "w") : nullptr;
        if (!file) return;
        std::fprintf(file, "{\"wrong\": %d, \"launched\": \"%s\", \"live\": {", wrong, launched.c_str());
        const char* comma = "";
        for (const auto& [name, number] : live) {
            std::fprintf(file, "%s\"%s\": %d", comma, name.c_str(), number);
            comma = ", ";
        }
        std::fprintf(file, "}}\n");
        std::fclose(file);
    }

    std::map<std::string, int> live;
    int wrong = 0;
    std::string launched;
    std::vector<Work>* capture = nullptr;
};

State state;
thread_local std::vector<void*> contexts{nullptr};
int the_context, the_stream;

int made(const char* what, int by = 1) {
    state.live[what] += by;
    return kCudaSuccess;
}

int refuse(int status) {
    ++state.wrong;
    return status;
}

bool in_context() {
    return contexts.back() == &the_context;
}

int enqueue(void* stream, Work work) {
    if (!in_context() || stream != &the_stream) return refuse(kInvalidContext);
    if (state.capture) {
        state.capture->push_back(std::move(work));
    } else {
        work();
    }
    return kCudaSuccess;
}

void* pointer(CudaAddress address) {
    return reinterpret_cast<void*>(address);
}

}  // namespace

extern "C" {

int cuInit(unsigned) {
    return std::getenv("FAKE_CUDA_NO_GPU") ? kCudaNoDevice : kCudaSuccess;
}
int cuGetErrorString(int status, const char** text) {
    *text = status == kCapturing ? "operation not permitted when stream is capturing" : "an error";
    return kCudaSuccess;
}
int cuDeviceGetCount(int* count) {
    *count = 1;
    return kCudaSuccess;
}
int cuDeviceGetName(char* name, int room, int) {
    std::snprintf(name, static_cast<size_t>(room), "a GPU that is not there");
    return kCudaSuccess;
}
int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = size_t{12} << 30;
    return kCudaSuccess;
}
int cuDeviceGet(int* device, int index) {
    *device = 7 + index;
    return kCudaSuccess;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (device != 7) return refuse(kInvalidValue);
    *value = attribute == kCapabilityMajor ? 8 : 9;
    return kCudaSuccess;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
    *context = &the_context;
    return made("context");
}
int cuDevicePrimaryCtxRelease_v2(int) {
    return made("context", -1);
}
int cuCtxSetCurrent(void* context) {
    contexts.back() = context;
    return kCudaSuccess;
}
int cuCtxPushCurrent_v2(void* context) {
    contexts.push_back(context);
    return kCudaSuccess;
}
int cuCtxPopCurrent_v2(void** context) {
    *context = contexts.back();
    contexts.pop_back();
    return kCudaSuccess;
}
int cuStreamCreate(void** stream, unsigned flags) {
    if (!in_context() || flags != kNonBlockingStream) return refuse(kInvalidValue);
    *stream = &the_stream;
    return made("stream");
}
int cuStreamDestroy_v2(void*) {
    return in_context() ? made("stream", -1) : refuse(kInvalidContext);
}
int cuStreamSynchronize(void*) {
    return state.capture ? refuse(kCapturing) : kCudaSuccess;
}
int cuStreamBeginCapture_v2(void*, int mode) {
    if (state.capture || mode != kRelaxedCapture) return refuse(kCapturing);
    state.capture = new std::vector<Work>;
    return made("graph");
}
int cuStreamEndCapture(void*, void** graph) {
    if (!state.capture) return refuse(kCapturing);
    *graph = state.capture;
    state.capture = nullptr;
    return kCudaSuccess;
}
int cuGraphCreate(void** graph, unsigned flags) {
    if (!in_context() || flags) return refuse(kInvalidValue);
    *graph = new std::vector<Work>;
    return made("graph");
}
int cuGraphAddChildGraphNode(void** node, void* graph, void* const* dependencies, size_t count, void* child) {
    auto* parent = static_cast<std::vector<Work>*>(graph);
    // All of it runs in order: the first has no predecessor, each other one the last.
    if (!in_context() || count != !parent->empty() || (count && !dependencies[0])) return refuse(kInvalidValue);
    const auto& work = *static_cast<std::vector<Work>*>(child);
    parent->insert(parent->end(), work.begin(), work.end());
    *node = parent;
    return kCudaSuccess;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    *executable = new std::vector<Work>(*static_cast<std::vector<Work>*>(graph));
    return made("executable");
}
int cuGraphLaunch(void* executable, void* stream) {
    return enqueue(stream, [executable] {
        for (const Work& work : *static_cast<std::vector<Work>*>(executable)) work();
    });
}
int cuGraphDestroy(void* graph) {
    delete static_cast<std::vector<Work>*>(graph);
    return made("graph", -1);
}
int cuGraphExecDestroy(void* executable) {
    delete static_cast<std::vector<Work>*>(executable);
    return in_context() ? made("executable", -1) : refuse(kInvalidContext);
}
int cuMemAlloc_v2(CudaAddress* address, size_t bytes) {
    if (!in_context()) return refuse(kInvalidContext);
    if (state.capture) return refuse(kCapturing);
    if (bytes > size_t{1} << 30) return kCudaOutOfMemory;
    *address = reinterpret_cast<CudaAddress>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
    return made("memory");
}
int cuMemFree_v2(CudaAddress address) {
    std::free(pointer(address));
    return in_context() ? made("memory", -1) : refuse(kInvalidContext);
}
int cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    if (!in_context()) return refuse(kInvalidContext);
    *memory = std::malloc(bytes);
    return made("pinned");
}
int cuMemFreeHost(void* memory) {
    std::free(memory);
    return in_context() ? made("pinned", -1) : refuse(kInvalidContext);
}
int cuMemsetD8Async(CudaAddress address, unsigned char value, size_t count, void* stream) {
    return enqueue(stream, [=] { std::memset(pointer(address), value, count); });
}
int cuMemcpyHtoDAsync_v2(CudaAddress to, const void* from, size_t bytes, void* stream) {
    return enqueue(stream, [=] { std::memcpy(pointer(to), from, bytes); });
}
int cuMemcpyDtoHAsync_v2(void* to, CudaAddress from, size_t bytes, void* stream) {
    return enqueue(stream, [=] { std::memcpy(to, pointer(from), bytes); });
}
int cuModuleLoadData(void** module, const void* image) {
    if (!in_context()) return refuse(kInvalidContext);
    *module = new std::string(static_cast<const char*>(image));
    return made("module");
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
    *static_cast<std::string*>(module) += std::string(" ") + name;
    *function = module;
    return kCudaSuccess;
}
int cuModuleUnload(void* module) {
    delete static_cast<std::string*>(module);
    return in_context() ? made("module", -1) : refuse(kInvalidContext);
}
int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** parameters,
                   void** extra) {
    if (extra) return refuse(kInvalidValue);
    char line[256];
    std::snprintf(line, sizeof line, "%s %u %u %u %u %u %u %u %llu", static_cast<std::string*>(function)->c_str(),
                  grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes,
                  *static_cast<unsigned long long*>(parameters[0]));
    return enqueue(stream, [text = std::string(line)] { state.launched = text; });
}

}  // extern "C"
