#include "backends/cpu_backends.hpp"

#include "backends/onnxruntime.hpp"
#include "backends/openvino.hpp"
#include "error.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

// More than any machine has. Asking for more would end the process when threads cannot be created.
constexpr int kMostThreads = 1024;

}  // namespace

std::shared_ptr<const Backend> create_cpu_backend(const CpuBackendOptions& options, const Log& log) {
    const std::string precision = options.precision.empty() ? "fp32" : options.precision;
    if (precision != "fp32" && precision != "bf16") {
        throw ParameterError(text("precision '", precision, "' is unknown"), "choose one of fp32, bf16");
    }
    if (options.threads < 0 || options.threads > kMostThreads) {
        throw ParameterError(text("threads is ", options.threads),
                             text("give 1 to ", kMostThreads, ", or 0 for one per physical core"));
    }
    const bool bf16 = precision == "bf16";
    const int threads = options.threads ? options.threads : platform::physical_cores();
    const std::string name = !options.backend.empty() ? options.backend : bf16 ? "openvino" : "onnxruntime";
    if (name == "openvino") return std::make_shared<const OpenVino>(options.openvino_library, threads, bf16);
    if (name != "onnxruntime") {
        throw ParameterError(text("backend '", name, "' is unknown"), "choose one of onnxruntime, openvino");
    }
    if (bf16) {
        throw BackendError("precision 'bf16' is not available with onnxruntime on CPU",
                           "use backend openvino or precision fp32");
    }
    return std::make_shared<const OnnxRuntime>(options.ort_library, threads, log);
}

}  // namespace ebca::internal
