// Compiled if cuda.h is found: the library's declarations of the driver's interface equal those of that header.
#include <cuda.h>

#include <cstdio>
#include <initializer_list>
#include <type_traits>

#include "devices/cuda_api.hpp"

using namespace ebca::internal;

namespace {

template <typename T>
constexpr bool kAddress = std::is_pointer_v<T>;

// Pointers of both kinds, and integers or enums of one size, are passed alike.
template <typename Ours, typename Theirs>
constexpr bool passed_alike() {
    if constexpr (kAddress<Ours> || kAddress<Theirs>) {
        return kAddress<Ours> && kAddress<Theirs>;
    } else {
        return (std::is_integral_v<Theirs> || std::is_enum_v<Theirs>)&&sizeof(Ours) == sizeof(Theirs);
    }
}

template <typename Ours, typename Theirs>
struct Alike;
template <typename... Ours, typename... Theirs>
struct Alike<int (*)(Ours...), CUresult (*)(Theirs...)> {
    static constexpr bool count = sizeof...(Ours) == sizeof...(Theirs);
    static constexpr bool value = (passed_alike<Ours, Theirs>() && ...);
};

}  // namespace

#define CHECK(name, theirs)                                                               \
    static_assert(Alike<decltype(CudaFunctions::name), decltype(&theirs)>::count, #name); \
    static_assert(Alike<decltype(CudaFunctions::name), decltype(&theirs)>::value, #name)

CHECK(cuInit, cuInit);
CHECK(cuGetErrorString, cuGetErrorString);
CHECK(cuDeviceGetCount, cuDeviceGetCount);
CHECK(cuDeviceGet, cuDeviceGet);
CHECK(cuDeviceGetAttribute, cuDeviceGetAttribute);
CHECK(cuDeviceGetName, cuDeviceGetName);
CHECK(cuDeviceTotalMem_v2, cuDeviceTotalMem);
CHECK(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain);
CHECK(cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRelease);
CHECK(cuCtxSetCurrent, cuCtxSetCurrent);
CHECK(cuCtxPushCurrent_v2, cuCtxPushCurrent);
CHECK(cuCtxPopCurrent_v2, cuCtxPopCurrent);
CHECK(cuStreamCreate, cuStreamCreate);
CHECK(cuStreamDestroy_v2, cuStreamDestroy);
CHECK(cuStreamSynchronize, cuStreamSynchronize);
CHECK(cuStreamBeginCapture_v2, cuStreamBeginCapture);
CHECK(cuStreamEndCapture, cuStreamEndCapture);
CHECK(cuGraphCreate, cuGraphCreate);
CHECK(cuGraphAddChildGraphNode, cuGraphAddChildGraphNode);
CHECK(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags);
CHECK(cuGraphLaunch, cuGraphLaunch);
CHECK(cuGraphDestroy, cuGraphDestroy);
CHECK(cuGraphExecDestroy, cuGraphExecDestroy);
CHECK(cuMemAlloc_v2, cuMemAlloc);
CHECK(cuMemFree_v2, cuMemFree);
CHECK(cuMemHostAlloc, cuMemHostAlloc);
CHECK(cuMemFreeHost, cuMemFreeHost);
CHECK(cuMemsetD8Async, cuMemsetD8Async);
CHECK(cuMemcpyHtoDAsync_v2, cuMemcpyHtoDAsync);
CHECK(cuMemcpyDtoHAsync_v2, cuMemcpyDtoHAsync);
CHECK(cuModuleLoadData, cuModuleLoadData);
CHECK(cuModuleGetFunction, cuModuleGetFunction);
CHECK(cuModuleUnload, cuModuleUnload);
CHECK(cuLaunchKernel, cuLaunchKernel);
static_assert(sizeof(CudaAddress) == sizeof(CUdeviceptr));
static_assert(kCudaSuccess == CUDA_SUCCESS && kCudaOutOfMemory == CUDA_ERROR_OUT_OF_MEMORY);
static_assert(kCudaNoDevice == CUDA_ERROR_NO_DEVICE && kNonBlockingStream == CU_STREAM_NON_BLOCKING);
static_assert(kCapabilityMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(kCapabilityMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(kRelaxedCapture == CU_STREAM_CAPTURE_MODE_RELAXED);

#define TEXT(name) #name
#define EXPORTED(name) TEXT(name)

// A name that the header maps to a suffixed one must be declared by the library.
int main() {
    for (const char* name :
         {EXPORTED(cuDevicePrimaryCtxRelease), EXPORTED(cuCtxPushCurrent), EXPORTED(cuCtxPopCurrent),
          EXPORTED(cuStreamDestroy), EXPORTED(cuStreamBeginCapture), EXPORTED(cuMemAlloc), EXPORTED(cuMemFree),
          EXPORTED(cuMemcpyHtoDAsync), EXPORTED(cuMemcpyDtoHAsync), EXPORTED(cuStreamEndCapture),
          EXPORTED(cuGraphLaunch), EXPORTED(cuLaunchKernel), EXPORTED(cuModuleLoadData), EXPORTED(cuMemHostAlloc),
          EXPORTED(cuCtxSetCurrent), EXPORTED(cuGraphCreate), EXPORTED(cuGraphAddChildGraphNode),
          EXPORTED(cuDeviceTotalMem), EXPORTED(cuDeviceGetName)}) {
        std::puts(name);
    }
}
