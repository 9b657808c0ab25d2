// ONNX Runtime on CPU, as engines/onnxruntime.py runs it.
//
// `prepare` lets ONNX Runtime optimise a graph once and saves the result with weights already packed for this
// processor; `open` then maps that file with optimisations off, which takes tens of milliseconds and no memory of its
// own. All sessions share one memory arena, so seventeen segments need the scratch memory of one.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "ort_library.hpp"
#include "tensor.hpp"

namespace ebca {

class OnnxRuntime;

// A graph with fixed addresses. Runs it once per call; used from one thread at a time.
class Binding {
  public:
    // BackendError where the graph fails.
    void run();

  private:
    friend class Runner;
    explicit Binding(std::shared_ptr<const class Runner> runner) : runner_(std::move(runner)) {}

    std::shared_ptr<const class Runner> runner_;
    OrtPointer<OrtIoBinding> binding_;
};

// One opened graph. Bindings of one runner may run in different threads.
class Runner : public std::enable_shared_from_this<Runner> {
  public:
    Runner(std::shared_ptr<const OnnxRuntime> runtime, OrtPointer<OrtSession> session, std::string name);

    // Fix the addresses of all inputs and outputs, which belong to the caller and must outlive the result.
    Binding bind(const Tensors& inputs, const Tensors& outputs) const;

  private:
    friend class Binding;

    std::shared_ptr<const OnnxRuntime> runtime_;
    OrtPointer<OrtSession> session_;
    std::string name_;
    std::set<std::string> inputs_;  // those that an operator reads
};

// Thread-safe.
class OnnxRuntime : public std::enable_shared_from_this<OnnxRuntime> {
  public:
    static constexpr const char* name = "onnxruntime";

    // library: see OrtLibrary. threads: of every graph; 0: one per physical core.
    OnnxRuntime(const std::string& library, int threads);

    const OrtLibrary& library() const { return library_; }
    int threads() const { return threads_; }

    // Everything beside the files that a prepared form depends on.
    std::map<std::string, std::string> identity() const;

    // Write the prepared form of `graph` as `target` and a file beside it. May be slow.
    void prepare(const std::filesystem::path& graph, const std::filesystem::path& target) const;

    // Open what `prepare` wrote.
    std::shared_ptr<Runner> open(const std::filesystem::path& prepared) const;

  private:
    OrtPointer<OrtSessionOptions> options() const;
    void set(OrtSessionOptions& options, const char* key, const std::string& value) const;
    OrtPointer<OrtSession> session(const std::filesystem::path& path, const OrtSessionOptions& options) const;
    void optimise(const std::filesystem::path& graph, const std::filesystem::path& target, size_t threshold,
                  bool packed) const;

    OrtLibrary library_;
    OrtPointer<OrtEnv> environment_;
    int threads_;
};

// Whether every packed weight named in an optimised graph ("key|offset;length;flag") may be mapped as it lies.
bool packed_weights_are_aligned(const std::string& model);

}  // namespace ebca
