// Which backend runs on the CPU, as engines/backends/registry.py chooses it.
#pragma once

#include <memory>
#include <string>

#include "backends/backend.hpp"
#include "log.hpp"

namespace ebca::internal {

struct CpuBackendOptions {
    std::string backend;           // empty: onnxruntime for fp32, openvino for bf16
    std::string precision;         // empty: fp32
    int threads = 0;               // of every graph; 0: one per physical core
    std::string ort_library;       // see OrtLibrary
    std::string openvino_library;  // see OpenVinoLibrary
};

// log: of errors that the library reports. BackendError: the library is missing, or cannot run at this precision.
// ParameterError: an unknown name or precision.
std::shared_ptr<const Backend> create_cpu_backend(const CpuBackendOptions& options, const Log& log = {});

}  // namespace ebca::internal
