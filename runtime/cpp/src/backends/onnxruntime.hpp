// ONNX Runtime on CPU, as engines/backends/onnxruntime.py runs it.
//
// `prepare` lets ONNX Runtime optimise a graph once and saves the result with weights already packed for this
// processor; `open` then maps that file with optimisations off, which takes tens of milliseconds and no memory of its
// own. All sessions share one memory arena, so seventeen segments need the scratch memory of one.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "backends/backend.hpp"
#include "backends/ort_library.hpp"
#include "log.hpp"

namespace ebca::internal {

// Thread-safe.
class OnnxRuntime : public Backend, public std::enable_shared_from_this<OnnxRuntime> {
  public:
    // library: see OrtLibrary. threads: of every graph, 1 or more. log: of errors that ONNX Runtime reports.
    OnnxRuntime(const std::string& library, int threads, Log log);

    const std::string& name() const override { return name_; }
    const std::string& version() const override { return library_.version(); }
    int threads() const override { return threads_; }
    bool prepares() const override { return true; }
    double growth(const std::string& precision) const override;
    std::map<std::string, std::string> identity() const override;
    void prepare(const std::filesystem::path& graph, const std::filesystem::path& target) const override;
    std::shared_ptr<Runner> open(const std::filesystem::path& prepared, const Component& component,
                                 const Dimensions& dimensions) const override;

    const OrtLibrary& library() const { return library_; }

  private:
    OrtPointer<OrtSessionOptions> options() const;
    void set(OrtSessionOptions& options, const char* key, const std::string& value) const;
    OrtPointer<OrtSession> session(const std::filesystem::path& path, const OrtSessionOptions& options) const;
    void optimise(const std::filesystem::path& graph, const std::filesystem::path& target, size_t threshold,
                  bool packed) const;

    std::string name_ = "onnxruntime";
    OrtLibrary library_;
    OrtPointer<OrtEnv> environment_;
    int threads_;
    Log log_;
};

}  // namespace ebca::internal
