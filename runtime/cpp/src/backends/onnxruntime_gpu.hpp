// ONNX Runtime on an NVIDIA GPU: its CUDA provider, as engines/backends/onnxruntime_cuda.py runs it, or the plugin
// provider of TensorRT for RTX. Not run on a GPU yet.
//
// Everything is enqueued on the caller's stream and nothing waits for it, so that an evaluation can be captured in one
// CUDA graph from outside; the providers' own graphs stay off. Nothing falls back to the CPU in silence. The CUDA
// provider opens a component for one set of sizes: with sizes unknown, arithmetic on shapes runs between the kernels,
// with copies to the host and back that no graph can hold. It refuses an allocator of the caller together with a stream
// of the caller; hence one arena that its sessions share.
#pragma once

#include <memory>
#include <string>

#include "backends/backend.hpp"
#include "log.hpp"

namespace ebca::internal {

struct GpuBackendOptions {
    std::string ort_library;           // see OrtLibrary; 1.24 or newer
    std::string tensorrt_rtx_library;  // plugin provider; empty: EBCA_TRT_RTX_EP_LIB; neither: the CUDA provider
    int index = 0;                     // of the GPU
    void* stream = nullptr;            // cudaStream_t to enqueue on
    Log log = {};                      // of errors that ONNX Runtime reports
};

// Opens the graphs of the engine directory unchanged. BackendError: the library is missing, too old, or has no such
// provider. UnsupportedError: this library was built with headers of ONNX Runtime older than 1.24.
std::shared_ptr<const Backend> create_gpu_backend(const GpuBackendOptions& options);

}  // namespace ebca::internal
