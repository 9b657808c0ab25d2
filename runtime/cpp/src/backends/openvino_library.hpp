// OpenVINO, loaded at run time.
#pragma once

#include <memory>
#include <string>

#include "backends/openvino_c.hpp"

namespace ebca::internal {

template <typename T>
struct OvRelease {
    void (*release)(T*) = nullptr;
    void operator()(T* object) const { release(object); }
};
template <typename T>
using OvPointer = std::unique_ptr<T, OvRelease<T>>;

class OpenVinoLibrary {
  public:
    // path: of libopenvino_c.so; empty: EBCA_OPENVINO_LIB, then what the system's loader finds. BackendError where
    // there is none, or none that is new enough.
    explicit OpenVinoLibrary(const std::string& path);

    const openvino_c::Functions& api() const { return api_; }
    const std::string& version() const { return version_; }

    // BackendError with the last line of OpenVINO's message, or OutOfMemoryError; `doing` says what failed.
    void check(openvino_c::Status status, const std::string& doing) const;

  private:
    openvino_c::Functions api_{};
    std::string version_;
};

}  // namespace ebca::internal
