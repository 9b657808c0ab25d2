#include "backends/openvino.hpp"

#include <shared_mutex>
#include <vector>

#include "error.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

constexpr const char* kDevice = "CPU";

openvino_c::ElementType openvino_type(DType dtype) {
    switch (dtype) {
        case DType::float16:
            return openvino_c::kFloat16;
        case DType::int64:
            return openvino_c::kInt64;
        case DType::int32:
            return openvino_c::kInt32;
        default:
            return openvino_c::kFloat32;
    }
}

// A compiled model.
class OpenVinoRunner : public Runner, public std::enable_shared_from_this<OpenVinoRunner> {
  public:
    // weights: the mapped file; empty: none.
    OpenVinoRunner(std::shared_ptr<const OpenVino> backend, OvPointer<ov_compiled_model> compiled, std::string name,
                   std::filesystem::path weights)
        : backend_(std::move(backend)),
          compiled_(std::move(compiled)),
          name_(std::move(name)),
          weights_(std::move(weights)) {}
    ~OpenVinoRunner() override {
        std::shared_lock held(platform::mappings());
        compiled_.reset();
    }
    std::unique_ptr<Call> bind(const Tensors& inputs, const Tensors& outputs) const override;
    // cancellation: null: the run cannot be stopped.
    void run(ov_infer_request* request, Cancellation* cancellation) const;
    void forget_weights() const;

  private:
    void set(ov_infer_request* request, const std::string& name, const Tensor& tensor) const;
    bool has_input(const std::string& name) const;

    std::shared_ptr<const OpenVino> backend_;
    OvPointer<ov_compiled_model> compiled_;
    std::string name_;
    std::filesystem::path weights_;
};

// A request of its own, so that calls of one runner may run in different threads.
class OpenVinoCall : public Call {
  public:
    OpenVinoCall(std::shared_ptr<const OpenVinoRunner> runner, OvPointer<ov_infer_request> request)
        : runner_(std::move(runner)), request_(std::move(request)) {}
    ~OpenVinoCall() override {
        std::shared_lock held(platform::mappings());
        request_.reset();
    }
    void run() override { run(nullptr); }
    void run_until(Cancellation& cancellation) override { run(&cancellation); }

  private:
    void run(Cancellation* cancellation) {
        if (packed_) return runner_->run(request_.get(), cancellation);
        {
            // Weights that have been packed may be unmapped.
            std::shared_lock held(platform::mappings());
            runner_->run(request_.get(), cancellation);
        }
        runner_->forget_weights();
        packed_ = true;
    }

    std::shared_ptr<const OpenVinoRunner> runner_;
    OvPointer<ov_infer_request> request_;
    bool packed_ = false;
};

std::unique_ptr<Call> OpenVinoRunner::bind(const Tensors& inputs, const Tensors& outputs) const {
    const OpenVinoLibrary& library = backend_->library();
    const openvino_c::Functions& ov = library.api();
    ov_infer_request* raw = nullptr;
    library.check(ov.compiled_model_create_infer_request(compiled_.get(), &raw), text("cannot bind ", name_));
    OvPointer<ov_infer_request> request(raw, {ov.infer_request_free});
    size_t wanted = 0, bound = 0;
    library.check(ov.compiled_model_inputs_size(compiled_.get(), &wanted), "cannot count inputs");
    for (const auto& [name, tensor] : inputs) {
        // An input that no operator reads may be optimised away.
        if (!has_input(name)) continue;
        set(raw, name, tensor);
        ++bound;
    }
    if (bound != wanted) {
        throw BackendError(text("openvino ", library.version(), " wants ", wanted, " inputs of ", name_, ", of which ",
                                bound, " are in the manifest"),
                           "export the engine again");
    }
    for (const auto& [name, tensor] : outputs) set(raw, name, tensor);
    return std::make_unique<OpenVinoCall>(shared_from_this(), std::move(request));
}

bool OpenVinoRunner::has_input(const std::string& name) const {
    const openvino_c::Functions& ov = backend_->library().api();
    ov_output_const_port* port = nullptr;
    if (ov.compiled_model_input_by_name(compiled_.get(), name.c_str(), &port) != 0) return false;
    ov.output_const_port_free(port);
    return true;
}

void OpenVinoRunner::set(ov_infer_request* request, const std::string& name, const Tensor& tensor) const {
    const OpenVinoLibrary& library = backend_->library();
    const openvino_c::Functions& ov = library.api();
    const std::string doing = text("cannot bind ", name, " of ", name_);
    Shape shape = tensor.shape;
    openvino_c::Shape dims{static_cast<int64_t>(shape.size()), shape.data()};
    ov_tensor* raw = nullptr;
    library.check(ov.tensor_create_from_host_ptr(openvino_type(tensor.dtype), dims, tensor.data, &raw), doing);
    OvPointer<ov_tensor> made(raw, {ov.tensor_free});
    library.check(ov.infer_request_set_tensor(request, name.c_str(), raw), doing);
}

void OpenVinoRunner::run(ov_infer_request* request, Cancellation* cancellation) const {
    const OpenVinoLibrary& library = backend_->library();
    const openvino_c::Functions& ov = library.api();
    library.check(ov.infer_request_start_async(request), text("cannot run ", name_));
    if (!cancellation) return library.check(ov.infer_request_wait(request), text("cannot run ", name_));
    openvino_c::Status status = 0;
    {
        // After the start: a request that runs no graph yet would ignore it.
        Cancellation::Reach reach(*cancellation, [&ov, request] { ov.infer_request_cancel(request); });
        status = ov.infer_request_wait(request);
    }
    if (status != 0) cancellation->check(name_.c_str());
    library.check(status, text("cannot run ", name_));
}

void OpenVinoRunner::forget_weights() const {
    if (!weights_.empty()) platform::forget({weights_});
}

OvPointer<ov_core> core(const OpenVinoLibrary& library) {
    ov_core* made = nullptr;
    library.check(library.api().core_create(&made), "cannot start");
    return {made, {library.api().core_free}};
}

}  // namespace

OpenVino::OpenVino(const std::string& library, int threads, bool bf16)
    : library_(library), core_(core(library_)), threads_(threads), bf16_(bf16) {
    if (!bf16) return;
    const openvino_c::Functions& ov = library_.api();
    char* raw = nullptr;
    library_.check(ov.core_get_property(core_.get(), kDevice, "OPTIMIZATION_CAPABILITIES", &raw),
                   "does not say what the processor can do");
    std::string capabilities(raw);
    ov.free(raw);
    if (capabilities.find("BF16") == capabilities.npos) {
        throw BackendError("precision 'bf16' needs a processor with AVX512-BF16 or AMX", "use precision fp32");
    }
}

std::shared_ptr<Runner> OpenVino::open(const std::filesystem::path& graph, const Component& component,
                                       const Dimensions&) const {
    const openvino_c::Functions& ov = library_.api();
    const std::string doing = text("cannot open '", platform::to_utf8(graph), "'");
    const std::string threads = std::to_string(threads_);
    const char* precision = bf16_ && !component.float32_only ? "bf16" : "f32";
    OvPointer<ov_compiled_model> compiled;
    {
        std::shared_lock held(platform::mappings());
        ov_model* raw = nullptr;
        library_.check(ov.core_read_model(core_.get(), platform::to_utf8(graph).c_str(), nullptr, &raw), doing);
        OvPointer<ov_model> model(raw, {ov.model_free});
        ov_compiled_model* made = nullptr;
        // Keys and values in turn.
        library_.check(ov.core_compile_model(core_.get(), raw, kDevice, 8, &made, "INFERENCE_PRECISION_HINT", precision,
                                             "INFERENCE_NUM_THREADS", threads.c_str(), "PERFORMANCE_HINT", "LATENCY",
                                             "NUM_STREAMS", "1"),
                       doing);
        compiled = {made, {ov.compiled_model_free}};
    }
    std::filesystem::path weights;
    if (!component.weights.empty()) {
        weights = graph.parent_path() / std::filesystem::path(component.weights).filename();
    }
    return std::make_shared<OpenVinoRunner>(shared_from_this(), std::move(compiled), platform::to_utf8(graph.stem()),
                                            weights);
}

}  // namespace ebca::internal
