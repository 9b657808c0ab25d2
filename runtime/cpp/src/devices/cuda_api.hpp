// The part of the CUDA driver's C interface (cuda.h) that we call, by the names that libcuda.so.1 exports. That
// interface is stable: a name with a version suffix never changes. All but one of these exist since CUDA 10; the
// exception, cuGraphInstantiateWithFlags, since CUDA 11.4.
#pragma once

#include <cstddef>

namespace ebca::internal {

// CUdeviceptr is an integer of 64 bits, CUdevice an int; CUcontext, CUstream, CUmodule, CUfunction, CUgraph and
// CUgraphExec are pointers; CUresult, CUdevice_attribute and CUstreamCaptureMode are enums of an int's size.
using CudaAddress = unsigned long long;

constexpr int kCudaSuccess = 0;
constexpr int kCudaOutOfMemory = 2;
constexpr int kCudaNoDevice = 100;
constexpr int kCapabilityMajor = 75;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
constexpr int kCapabilityMinor = 76;
constexpr unsigned kNonBlockingStream = 1;  // CU_STREAM_NON_BLOCKING
constexpr int kRelaxedCapture = 2;          // CU_STREAM_CAPTURE_MODE_RELAXED

struct CudaFunctions {
    int (*cuInit)(unsigned flags);
    int (*cuGetErrorString)(int status, const char** text);
    int (*cuDeviceGetCount)(int* count);
    int (*cuDeviceGet)(int* device, int index);
    int (*cuDeviceGetAttribute)(int* value, int attribute, int device);
    int (*cuDeviceGetName)(char* name, int room, int device);
    int (*cuDeviceTotalMem_v2)(size_t* bytes, int device);
    int (*cuDevicePrimaryCtxRetain)(void** context, int device);
    int (*cuDevicePrimaryCtxRelease_v2)(int device);
    int (*cuCtxSetCurrent)(void* context);
    int (*cuCtxPushCurrent_v2)(void* context);
    int (*cuCtxPopCurrent_v2)(void** context);
    int (*cuStreamCreate)(void** stream, unsigned flags);
    int (*cuStreamDestroy_v2)(void* stream);
    int (*cuStreamSynchronize)(void* stream);
    int (*cuStreamBeginCapture_v2)(void* stream, int mode);
    int (*cuStreamEndCapture)(void* stream, void** graph);
    int (*cuGraphCreate)(void** graph, unsigned flags);
    int (*cuGraphAddChildGraphNode)(void** node, void* graph, void* const* dependencies, size_t count, void* child);
    int (*cuGraphInstantiateWithFlags)(void** executable, void* graph, unsigned long long flags);
    int (*cuGraphLaunch)(void* executable, void* stream);
    int (*cuGraphDestroy)(void* graph);
    int (*cuGraphExecDestroy)(void* executable);
    int (*cuMemAlloc_v2)(CudaAddress* address, size_t bytes);
    int (*cuMemFree_v2)(CudaAddress address);
    int (*cuMemHostAlloc)(void** memory, size_t bytes, unsigned flags);
    int (*cuMemFreeHost)(void* memory);
    int (*cuMemsetD8Async)(CudaAddress address, unsigned char value, size_t count, void* stream);
    int (*cuMemcpyHtoDAsync_v2)(CudaAddress to, const void* from, size_t bytes, void* stream);
    int (*cuMemcpyDtoHAsync_v2)(void* to, CudaAddress from, size_t bytes, void* stream);
    int (*cuModuleLoadData)(void** module, const void* image);
    int (*cuModuleGetFunction)(void** function, void* module, const char* name);
    int (*cuModuleUnload)(void* module);
    int (*cuLaunchKernel)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** parameters,
                          void** extra);
};

// Calls `visit(name, function)` for every function.
template <typename Visit>
void for_each_function(CudaFunctions& api, Visit&& visit) {
    visit("cuInit", api.cuInit);
    visit("cuGetErrorString", api.cuGetErrorString);
    visit("cuDeviceGetCount", api.cuDeviceGetCount);
    visit("cuDeviceGet", api.cuDeviceGet);
    visit("cuDeviceGetAttribute", api.cuDeviceGetAttribute);
    visit("cuDeviceGetName", api.cuDeviceGetName);
    visit("cuDeviceTotalMem_v2", api.cuDeviceTotalMem_v2);
    visit("cuDevicePrimaryCtxRetain", api.cuDevicePrimaryCtxRetain);
    visit("cuDevicePrimaryCtxRelease_v2", api.cuDevicePrimaryCtxRelease_v2);
    visit("cuCtxSetCurrent", api.cuCtxSetCurrent);
    visit("cuCtxPushCurrent_v2", api.cuCtxPushCurrent_v2);
    visit("cuCtxPopCurrent_v2", api.cuCtxPopCurrent_v2);
    visit("cuStreamCreate", api.cuStreamCreate);
    visit("cuStreamDestroy_v2", api.cuStreamDestroy_v2);
    visit("cuStreamSynchronize", api.cuStreamSynchronize);
    visit("cuStreamBeginCapture_v2", api.cuStreamBeginCapture_v2);
    visit("cuStreamEndCapture", api.cuStreamEndCapture);
    visit("cuGraphCreate", api.cuGraphCreate);
    visit("cuGraphAddChildGraphNode", api.cuGraphAddChildGraphNode);
    visit("cuGraphInstantiateWithFlags", api.cuGraphInstantiateWithFlags);
    visit("cuGraphLaunch", api.cuGraphLaunch);
    visit("cuGraphDestroy", api.cuGraphDestroy);
    visit("cuGraphExecDestroy", api.cuGraphExecDestroy);
    visit("cuMemAlloc_v2", api.cuMemAlloc_v2);
    visit("cuMemFree_v2", api.cuMemFree_v2);
    visit("cuMemHostAlloc", api.cuMemHostAlloc);
    visit("cuMemFreeHost", api.cuMemFreeHost);
    visit("cuMemsetD8Async", api.cuMemsetD8Async);
    visit("cuMemcpyHtoDAsync_v2", api.cuMemcpyHtoDAsync_v2);
    visit("cuMemcpyDtoHAsync_v2", api.cuMemcpyDtoHAsync_v2);
    visit("cuModuleLoadData", api.cuModuleLoadData);
    visit("cuModuleGetFunction", api.cuModuleGetFunction);
    visit("cuModuleUnload", api.cuModuleUnload);
    visit("cuLaunchKernel", api.cuLaunchKernel);
}

}  // namespace ebca::internal
