#include "backends/onnxruntime.hpp"

#include <fstream>
#include <set>
#include <shared_mutex>

#include "backends/ort_binding.hpp"
#include "backends/packed_numbers.hpp"
#include "contract/directory.hpp"
#include "error.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

// ONNX Runtime writes weights without padding and maps the file unchanged. A small constant of odd size then misaligns
// all that follow for vector loads, and the process crashes at the first run. Such constants go into the graph file
// instead, so thresholds are tried until all packed weights are aligned.
constexpr size_t kExternalFromBytes[] = {size_t{16} << 10, size_t{1} << 20};

void write_file(const std::filesystem::path& path, const std::string& bytes) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    file.close();
    if (!file) throw BackendError(text("'", platform::to_utf8(path), "' cannot be written"));
}

class OnnxRuntimeRunner;

class OnnxRuntimeCall : public Call {
  public:
    OnnxRuntimeCall(std::shared_ptr<const OnnxRuntimeRunner> runner, OrtPointer<OrtIoBinding> binding, bool once)
        : runner_(std::move(runner)), binding_(std::move(binding)), once_(once) {}
    void run() override;
    void run_until(Cancellation& cancellation) override;

  private:
    std::shared_ptr<const OnnxRuntimeRunner> runner_;
    OrtPointer<OrtIoBinding> binding_;
    bool once_;
};

// A session.
class OnnxRuntimeRunner : public Runner, public std::enable_shared_from_this<OnnxRuntimeRunner> {
  public:
    OnnxRuntimeRunner(std::shared_ptr<const OnnxRuntime> runtime, OrtPointer<OrtSession> session, std::string name);
    ~OnnxRuntimeRunner() override {
        std::shared_lock held(platform::mappings());
        session_.reset();
    }
    std::unique_ptr<Call> bind(const Tensors& inputs, const Tensors& outputs) const override {
        return bound(inputs, outputs, false);
    }
    std::unique_ptr<Call> bind_once(const Tensors& inputs, const Tensors& outputs) const override {
        return bound(inputs, outputs, true);
    }
    // once: the run leaves no unused memory in the arena, such as the gigabytes that a decoder needs.
    void run(const OrtIoBinding& binding, bool once) const;
    void run_until(const OrtIoBinding& binding, bool once, Cancellation& cancellation) const;

  private:
    std::unique_ptr<Call> bound(const Tensors& inputs, const Tensors& outputs, bool once) const;
    OrtPointer<OrtRunOptions> options(bool once) const;

    std::shared_ptr<const OnnxRuntime> runtime_;
    OrtPointer<OrtSession> session_;
    std::string name_;
    std::set<std::string> inputs_;  // those that an operator reads
};

OnnxRuntimeRunner::OnnxRuntimeRunner(std::shared_ptr<const OnnxRuntime> runtime, OrtPointer<OrtSession> session,
                                     std::string name)
    : runtime_(std::move(runtime)),
      session_(std::move(session)),
      name_(std::move(name)),
      inputs_(input_names(runtime_->library(), *session_)) {}

std::unique_ptr<Call> OnnxRuntimeRunner::bound(const Tensors& inputs, const Tensors& outputs, bool once) const {
    const OrtLibrary& ort = runtime_->library();
    OrtMemoryInfo* raw = nullptr;
    ort.check(ort.api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &raw), "cannot name the CPU");
    OrtPointer<OrtMemoryInfo> place(raw, {ort.api().ReleaseMemoryInfo});
    return std::make_unique<OnnxRuntimeCall>(
        shared_from_this(), bind_arrays(ort, *session_, name_, inputs_, *place, inputs, outputs), once);
}

// Of one run: options of a run that was stopped would stop the next one too.
OrtPointer<OrtRunOptions> OnnxRuntimeRunner::options(bool once) const {
    const OrtLibrary& ort = runtime_->library();
    OrtRunOptions* raw = nullptr;
    ort.check(ort.api().CreateRunOptions(&raw), "cannot make run options");
    OrtPointer<OrtRunOptions> made(raw, {ort.api().ReleaseRunOptions});
    const char* key = "memory.enable_memory_arena_shrinkage";
    if (once) ort.check(ort.api().AddRunConfigEntry(raw, key, "cpu:0"), "cannot set run options");
    return made;
}

void OnnxRuntimeRunner::run(const OrtIoBinding& binding, bool once) const {
    const OrtLibrary& ort = runtime_->library();
    OrtPointer<OrtRunOptions> chosen;
    if (once) chosen = options(once);
    ort.check(ort.api().RunWithBinding(session_.get(), chosen.get(), &binding), text("cannot run ", name_));
}

void OnnxRuntimeRunner::run_until(const OrtIoBinding& binding, bool once, Cancellation& cancellation) const {
    const OrtLibrary& ort = runtime_->library();
    OrtPointer<OrtRunOptions> chosen = options(once);
    OrtRunOptions* raw = chosen.get();
    OrtStatus* status = nullptr;
    {
        Cancellation::Reach reach(cancellation, [&ort, raw] { ort.ignore(ort.api().RunOptionsSetTerminate(raw)); });
        status = ort.api().RunWithBinding(session_.get(), raw, &binding);
    }
    if (status && cancellation.requested()) {
        ort.ignore(status);
        throw rules::cancelled_in(name_);
    }
    ort.check(status, text("cannot run ", name_));
}

void OnnxRuntimeCall::run() {
    runner_->run(*binding_, once_);
}

void OnnxRuntimeCall::run_until(Cancellation& cancellation) {
    runner_->run_until(*binding_, once_, cancellation);
}

}  // namespace

OnnxRuntime::OnnxRuntime(const std::string& library, int threads, Log log)
    : library_(library), environment_(library_.environment()), threads_(threads), log_(std::move(log)) {}

std::map<std::string, std::string> OnnxRuntime::identity() const {
    return {{"onnxruntime", library_.version()}, {"build", library_.build()}, {"processor", platform::processor()}};
}

double OnnxRuntime::growth(const std::string& precision) const {
    // Weights are widened to float32. Those of matrix products are stored twice, packed too; others are not.
    return kPadding * (precision == "fp16" ? 2 : 1);
}

void OnnxRuntime::prepare(const std::filesystem::path& graph, const std::filesystem::path& target) const {
    for (size_t threshold : kExternalFromBytes) {
        optimise(graph, target, threshold, true);
        std::string model = read_file(target);
        if (ungroup_packed_numbers(model)) write_file(target, model);
        if (packed_weights_are_aligned(model)) return;
    }
    optimise(graph, target, kExternalFromBytes[0], false);
}

void OnnxRuntime::optimise(const std::filesystem::path& graph, const std::filesystem::path& target, size_t threshold,
                           bool packed) const {
    std::filesystem::path weights = target;
    weights += ".data";
    std::filesystem::remove(weights);
    auto chosen = options();
    const OrtApi& api = library_.api();
    library_.check(api.SetSessionGraphOptimizationLevel(chosen.get(), ORT_ENABLE_ALL), "has no such level");
    library_.check(api.SetOptimizedModelFilePath(chosen.get(), target.c_str()), "has no such option");
    set(*chosen, "session.optimized_model_external_initializers_file_name", platform::to_utf8(weights.filename()));
    set(*chosen, "session.optimized_model_external_initializers_min_size_in_bytes", std::to_string(threshold));
    set(*chosen, "session.save_external_prepacked_constant_initializers", packed ? "1" : "0");
    session(graph, *chosen);
}

std::shared_ptr<Runner> OnnxRuntime::open(const std::filesystem::path& prepared, const Component&,
                                          const Dimensions&) const {
    auto chosen = options();
    library_.check(library_.api().SetSessionGraphOptimizationLevel(chosen.get(), ORT_DISABLE_ALL), "has no such level");
    set(*chosen, "session.use_env_allocators", "1");
    std::shared_lock held(platform::mappings());
    OrtPointer<OrtSession> opened = session(prepared, *chosen);
    held.unlock();
    return std::make_shared<OnnxRuntimeRunner>(shared_from_this(), std::move(opened),
                                               platform::to_utf8(prepared.stem()));
}

OrtPointer<OrtSessionOptions> OnnxRuntime::options() const {
    OrtPointer<OrtSessionOptions> options = session_options(library_, threads_, log_);
    // The next segment starts at once: threads of the last one must not keep spinning.
    set(*options, "session.intra_op.allow_spinning", "0");
    return options;
}

void OnnxRuntime::set(OrtSessionOptions& options, const char* key, const std::string& value) const {
    library_.check(library_.api().AddSessionConfigEntry(&options, key, value.c_str()),
                   text("refuses the option ", key));
}

OrtPointer<OrtSession> OnnxRuntime::session(const std::filesystem::path& path, const OrtSessionOptions& options) const {
    OrtSession* raw = nullptr;
    library_.check(library_.api().CreateSession(environment_.get(), path.c_str(), &options, &raw),
                   text("cannot open '", platform::to_utf8(path), "'"));
    return OrtPointer<OrtSession>(raw, {library_.api().ReleaseSession});
}

}  // namespace ebca::internal
