// ONNX Runtime, loaded at run time. Nothing here is global: a process may hold several copies of the library, a Python
// process for one usually does, and each has an OrtApi of its own.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>

namespace ebca::internal {

// Of the oldest ONNX Runtime that reads the graphs (opset 23). It has every function that is called, so a runtime older
// than the headers will do.
constexpr uint32_t kOrtApiVersion = 23;

template <typename T>
struct OrtRelease {
    void(ORT_API_CALL* release)(T*) = nullptr;
    void operator()(T* object) const { release(object); }
};
template <typename T>
using OrtPointer = std::unique_ptr<T, OrtRelease<T>>;

// What ONNX Runtime reports, to the Log that `target` points to; null: nowhere. Without it, ONNX Runtime writes to the
// standard error of the process.
void ORT_API_CALL ort_log(void* target, OrtLoggingLevel severity, const char* category, const char* session,
                          const char* place, const char* message) noexcept;

class OrtLibrary {
  public:
    // path: of the library; empty: EBCA_ORT_LIB, then the system's loader. BackendError if there is none,
    // or none that is new enough for that version of the API.
    explicit OrtLibrary(const std::string& path, uint32_t version = kOrtApiVersion);

    const OrtApi& api() const { return *api_; }
    const std::string& version() const { return version_; }
    // What the library says of its own build: version, commit, options.
    std::string build() const;

    // BackendError with the first line of ONNX Runtime's message, or OutOfMemoryError; `doing` says what failed.
    void check(OrtStatus* status, const std::string& doing) const;
    // Whatever it says.
    void ignore(OrtStatus* status) const;

    // The process-wide environment of this copy of the library, with the arena that all sessions share. What it reports
    // beside the statuses is dropped: it serves every engine of the process, and so has no log of one of them.
    OrtPointer<OrtEnv> environment() const;

  private:
    const OrtApi* api_ = nullptr;
    std::string version_;
};

}  // namespace ebca::internal
