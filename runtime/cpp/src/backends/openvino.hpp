// OpenVINO on CPU, as engines/backends/openvino.py runs it: the second engine, and the one with bfloat16.
//
// The graphs of the engine directory are opened unchanged, and their weights are mapped from there. (Python converts
// them to OpenVINO's own format first, which its C API cannot write; what is computed is the same.) Weights are packed
// at the first inference, which therefore takes longer; the mapped ones are then only in the way, as large as the
// packed ones, and are dropped from memory.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "backends/backend.hpp"
#include "backends/openvino_library.hpp"

namespace ebca::internal {

// Thread-safe.
class OpenVino : public Backend, public std::enable_shared_from_this<OpenVino> {
  public:
    // library: see OpenVinoLibrary. threads: of every graph, 1 or more. bf16: run components at bfloat16 unless they
    // are float32_only; BackendError where the processor has none.
    OpenVino(const std::string& library, int threads, bool bf16);

    const std::string& name() const override { return name_; }
    const std::string& version() const override { return library_.version(); }
    int threads() const override { return threads_; }
    bool prepares() const override { return false; }
    std::map<std::string, std::string> identity() const override { return {}; }
    void prepare(const std::filesystem::path&, const std::filesystem::path&) const override {}
    std::shared_ptr<Runner> open(const std::filesystem::path& graph, const Component& component,
                                 const Dimensions& dimensions) const override;

    const OpenVinoLibrary& library() const { return library_; }

  private:
    std::string name_ = "openvino";
    OpenVinoLibrary library_;
    OvPointer<ov_core> core_;
    int threads_;
    bool bf16_;
};

}  // namespace ebca::internal
