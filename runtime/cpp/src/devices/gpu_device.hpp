// A GPU as an engine uses it: the device "cuda", and what runs graphs on it.
#pragma once

#include <memory>
#include <string>

#include "backends/backend.hpp"
#include "devices/device.hpp"
#include "log.hpp"

namespace ebca::internal {

struct GpuOptions {
    void* stream = nullptr;            // see CudaDriver
    std::string kernels;               // see kernels_folder
    std::string tensorrt_rtx_library;  // see GpuBackendOptions
};

struct Gpu {
    std::shared_ptr<Device> device;
    std::shared_ptr<const Backend> backend;
};

// index: of the GPU. ort_library: see OrtLibrary. log: see CudaDevice.
// BackendError: there is no driver, no such GPU, no kernels, or no ONNX Runtime for it.
Gpu open_gpu(int index, const GpuOptions& options, const std::string& ort_library, Log log);

}  // namespace ebca::internal
