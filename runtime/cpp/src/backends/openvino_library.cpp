#include "backends/openvino_library.hpp"

#include <cstdio>
#include <sstream>
#include <utility>

#include "error.hpp"
#include "memory.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

// Older ones lack operators of the graphs, or (2026.2) open them and silently produce wrong results.
constexpr std::pair<int, int> kOldest{2026, 3};

// Never closed again: the library's threads outlive every engine.
void* open_openvino(const std::string& path) {
    const std::string named = path.empty() ? platform::variable("EBCA_OPENVINO_LIB") : path;
    const std::string chosen = named.empty() ? platform::openvino_name() : named;
    std::string reason;
    if (void* handle = platform::load(platform::to_path(chosen), platform::Symbols::own, reason)) return handle;
    throw BackendError(text("OpenVINO cannot be loaded (", reason, ")"),
                       "name its C library, libopenvino_c.so, in the parameters or in EBCA_OPENVINO_LIB");
}

template <typename Function>
void find(Function& function, void* handle, const char* name) {
    function = reinterpret_cast<Function>(platform::find_symbol(handle, name));
    if (!function) {
        throw BackendError(text("the library that was loaded as OpenVINO has no ", name),
                           "name OpenVINO's C library, libopenvino_c.so");
    }
}

openvino_c::Functions find_all(void* handle) {
    openvino_c::Functions ov{};
    find(ov.get_openvino_version, handle, "ov_get_openvino_version");
    find(ov.version_free, handle, "ov_version_free");
    find(ov.get_last_err_msg, handle, "ov_get_last_err_msg");
    find(ov.free, handle, "ov_free");
    find(ov.core_create, handle, "ov_core_create");
    find(ov.core_free, handle, "ov_core_free");
    find(ov.core_get_property, handle, "ov_core_get_property");
    find(ov.core_read_model, handle, "ov_core_read_model");
    find(ov.model_free, handle, "ov_model_free");
    find(ov.core_compile_model, handle, "ov_core_compile_model");
    find(ov.compiled_model_free, handle, "ov_compiled_model_free");
    find(ov.compiled_model_inputs_size, handle, "ov_compiled_model_inputs_size");
    find(ov.compiled_model_input_by_name, handle, "ov_compiled_model_input_by_name");
    find(ov.output_const_port_free, handle, "ov_output_const_port_free");
    find(ov.compiled_model_create_infer_request, handle, "ov_compiled_model_create_infer_request");
    find(ov.infer_request_free, handle, "ov_infer_request_free");
    find(ov.infer_request_set_tensor, handle, "ov_infer_request_set_tensor");
    find(ov.infer_request_start_async, handle, "ov_infer_request_start_async");
    find(ov.infer_request_wait, handle, "ov_infer_request_wait");
    find(ov.infer_request_cancel, handle, "ov_infer_request_cancel");
    find(ov.tensor_create_from_host_ptr, handle, "ov_tensor_create_from_host_ptr");
    find(ov.tensor_free, handle, "ov_tensor_free");
    return ov;
}

std::string last_line(const std::string& message) {
    std::istringstream lines(message);
    std::string last;
    for (std::string line; std::getline(lines, line);) {
        if (line.find_first_not_of(" \t\r") != line.npos) last = line;
    }
    return last;
}

}  // namespace

OpenVinoLibrary::OpenVinoLibrary(const std::string& path) : api_(find_all(open_openvino(path))) {
    openvino_c::Version version{};
    check(api_.get_openvino_version(&version), "does not say its version");
    version_ = version.build_number ? version.build_number : "";
    api_.version_free(&version);
    std::pair<int, int> found{};
    if (std::sscanf(version_.c_str(), "%d.%d", &found.first, &found.second) != 2 || found < kOldest) {
        throw BackendError(text("OpenVINO '", version_, "' is too old"),
                           text("install OpenVINO ", kOldest.first, ".", kOldest.second, " or newer"));
    }
}

void OpenVinoLibrary::check(openvino_c::Status status, const std::string& doing) const {
    if (status == 0) return;
    const char* message = api_.get_last_err_msg();
    const std::string whole(message ? message : "");
    api_.free(message);
    const std::string line = last_line(whole);
    const std::string problem =
        text("openvino ", version_, " ", doing, ": ", line.empty() ? text("status ", status) : line);
    if (is_about_memory(whole)) throw OutOfMemoryError(problem, kLessMemory);
    throw BackendError(problem);
}

}  // namespace ebca::internal
