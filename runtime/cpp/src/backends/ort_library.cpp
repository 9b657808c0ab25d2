#include "backends/ort_library.hpp"

#include <cstring>
#include <vector>

#include "error.hpp"
#include "log.hpp"
#include "memory.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

// Never closed: the library's threads and its environment outlive every engine.
void* open_onnxruntime(const std::string& path) {
    const std::string named = path.empty() ? platform::variable("EBCA_ORT_LIB") : path;
    std::string reasons;
    for (const std::string& candidate : named.empty() ? platform::onnxruntime_names() : std::vector{named}) {
        std::string reason;
        if (void* handle = platform::load(platform::to_path(candidate), platform::Symbols::own, reason)) return handle;
        reasons += (reasons.empty() ? "" : "; ") + reason;
    }
    throw BackendError(text("ONNX Runtime cannot be loaded (", reasons, ")"),
                       "name its library, libonnxruntime.so, in the parameters or in EBCA_ORT_LIB");
}

}  // namespace

void ORT_API_CALL ort_log(void* target, OrtLoggingLevel severity, const char*, const char*, const char*,
                          const char* message) noexcept {
    const auto* log = static_cast<const Log*>(target);
    if (!log || !*log) return;
    try {
        LogLevel level = severity < ORT_LOGGING_LEVEL_WARNING ? LogLevel::info : LogLevel::warning;
        (*log)(level, text("onnxruntime: ", message));
    } catch (...) {
        // Nothing may be thrown through ONNX Runtime; the status says what failed.
    }
}

OrtLibrary::OrtLibrary(const std::string& path, uint32_t version) {
    void* handle = open_onnxruntime(path);
    auto* base = reinterpret_cast<const OrtApiBase* (*)()>(platform::find_symbol(handle, "OrtGetApiBase"));
    if (!base)
        throw BackendError("the library that was loaded as ONNX Runtime has no OrtGetApiBase", "name another one");
    const OrtApiBase* versions = base();
    if (!versions) throw BackendError("the library that was loaded as ONNX Runtime has no API", "name another one");
    version_ = versions->GetVersionString();
    api_ = versions->GetApi(version);
    if (!api_) {
        throw BackendError(text("ONNX Runtime ", version_, " has no API of version ", version),
                           text("install ONNX Runtime 1.", version, " or newer"));
    }
}

std::string OrtLibrary::build() const {
    return api_->GetBuildInfoString();
}

void OrtLibrary::check(OrtStatus* status, const std::string& doing) const {
    if (!status) return;
    OrtPointer<OrtStatus> owned(status, {api_->ReleaseStatus});
    std::string message = api_->GetErrorMessage(status);
    const std::string problem = text("onnxruntime ", version_, " ", doing, ": ", message.substr(0, message.find('\n')));
    if (is_about_memory(message)) throw OutOfMemoryError(problem, kLessMemory);
    throw BackendError(problem);
}

void OrtLibrary::ignore(OrtStatus* status) const {
    if (status) api_->ReleaseStatus(status);
}

OrtPointer<OrtEnv> OrtLibrary::environment() const {
    OrtEnv* made = nullptr;
    check(api_->CreateEnvWithCustomLogger(ort_log, nullptr, ORT_LOGGING_LEVEL_ERROR, "ebca", &made), "cannot start");
    OrtPointer<OrtEnv> env(made, {api_->ReleaseEnv});
    OrtMemoryInfo* raw_place = nullptr;
    check(api_->CreateMemoryInfo("Cpu", OrtArenaAllocator, 0, OrtMemTypeDefault, &raw_place), "cannot name the CPU");
    OrtPointer<OrtMemoryInfo> place(raw_place, {api_->ReleaseMemoryInfo});
    // Grow only by what is requested: doubling would reserve gigabytes for the largest layer.
    const char* keys[] = {"arena_extend_strategy"};
    const size_t values[] = {1};
    OrtArenaCfg* raw_arena = nullptr;
    check(api_->CreateArenaCfgV2(keys, values, 1, &raw_arena), "cannot set up its arena");
    OrtPointer<OrtArenaCfg> arena(raw_arena, {api_->ReleaseArenaCfg});
    OrtStatus* status = api_->CreateAndRegisterAllocator(env.get(), place.get(), arena.get());
    // An engine that is open already has registered it: the process has one environment.
    if (status && std::strstr(api_->GetErrorMessage(status), "already")) {
        api_->ReleaseStatus(status);
    } else {
        check(status, "cannot register its arena");
    }
    return env;
}

}  // namespace ebca::internal
