#include "devices/cuda_device.hpp"

#include <algorithm>
#include <new>

#include "error.hpp"

namespace ebca::internal {
namespace {

using Lock = std::unique_lock<std::recursive_mutex>;

// In the first runs libraries allocate memory, choose algorithms and load kernels, which must not be captured.
constexpr int kWarmRuns = 3;

int64_t bytes_of(const Tensor& tensor) {
    return byte_size(tensor.shape, tensor.dtype);
}

void copy_in(Driver& driver, const std::vector<Shared>& arrays) {
    for (const Shared& one : arrays) driver.copy_in(one.array.data, one.host.data, bytes_of(one.host));
}

void copy_out(Driver& driver, const std::vector<Shared>& arrays) {
    for (const Shared& one : arrays) driver.copy_out(one.host.data, one.array.data, bytes_of(one.host));
}

void report(const CudaStream& stream, LogLevel level, const char* what, const BackendError& error) {
    if (stream.log) stream.log(level, text(what, ": ", error.what()));
}

void submit(Driver& driver, const std::vector<Call*>& calls) {
    for (Call* call : calls) driver.submit(*call);
}

}  // namespace

// Work of the stream: one graph, or call by call if it could not be captured.
class CudaRecording : public Recording {
  public:
    using Make = std::function<std::unique_ptr<Graph>()>;

    // enqueue: keeps alive what the graph uses. warm: comes before `make`, which returns the graph, or null if there
    // can be none.
    CudaRecording(std::shared_ptr<CudaStream> stream, std::function<void()> enqueue, std::function<void()> warm,
                  Make make)
        : stream_(std::move(stream)), enqueue_(std::move(enqueue)), warm_(std::move(warm)), make_(std::move(make)) {
        refresh();
    }

    void launch() override {
        Lock held(stream_->lock);
        stream_->driver->enter();
        refresh();
        if (graph_) {
            stream_->driver->launch(*graph_);
        } else {
            enqueue_();
        }
    }

    // Record again what is out of date.
    void refresh() {
        if (state_ == stream_->state) return;
        graph_.reset();
        warm_();
        graph_ = make_();
        state_ = stream_->state;
    }

    const Graph* graph() const { return graph_.get(); }  // null: none

  private:
    std::shared_ptr<CudaStream> stream_;
    std::function<void()> enqueue_, warm_;
    Make make_;
    std::unique_ptr<Graph> graph_;
    uint64_t state_ = 0;  // of the stream when it was recorded
};

namespace {

class RecordedStep : public Replay {
  public:
    RecordedStep(std::shared_ptr<CudaStream> stream, std::shared_ptr<CudaRecording> recording)
        : stream_(std::move(stream)), recording_(std::move(recording)) {}

    void run(Cancellation* cancellation) override {
        if (cancellation) cancellation->check("an evaluation");
        Lock held(stream_->lock);
        recording_->launch();
        stream_->driver->synchronize();
    }

  private:
    std::shared_ptr<CudaStream> stream_;
    std::shared_ptr<CudaRecording> recording_;
};

}  // namespace

CudaDevice::CudaDevice(std::shared_ptr<Driver> driver, std::shared_ptr<GpuKernels> kernels, Log log)
    : stream_(std::make_shared<CudaStream>()), kernels_(std::move(kernels)) {
    stream_->driver = std::move(driver);
    stream_->log = std::move(log);
}

Lock CudaDevice::ready() {
    Lock held(stream_->lock);
    stream_->driver->enter();
    return held;
}

Memory CudaDevice::allocate(int64_t bytes) {
    Lock held = ready();
    try {
        return Memory(
            {stream_->driver->allocate(bytes), [driver = stream_->driver](void* memory) { driver->free(memory); }},
            bytes);
    } catch (const std::bad_alloc&) {
        throw DeviceMemoryError(text("the GPU has no ", (bytes + 999999) / 1000000, " MB left"),
                                "make a smaller image, or fewer at once");
    }
}

Shared CudaDevice::share(const Tensor& array) {
    Lock held = ready();
    std::shared_ptr<void> mirror(stream_->driver->allocate_host(bytes_of(array)),
                                 [driver = stream_->driver](void* memory) { driver->free_host(memory); });
    return {array, {mirror.get(), array.dtype, array.shape}, mirror};
}

void CudaDevice::upload(const std::vector<Shared>& arrays) {
    Lock held = ready();
    copy_in(*stream_->driver, arrays);
}

void CudaDevice::download(const std::vector<Shared>& arrays) {
    Lock held = ready();
    copy_out(*stream_->driver, arrays);
    stream_->driver->synchronize();
}

void CudaDevice::read(void* host, const void* array, int64_t bytes) const {
    Lock held(stream_->lock);
    stream_->driver->enter();
    stream_->driver->copy_out(host, array, bytes);
    stream_->driver->synchronize();
}

void CudaDevice::write(void* array, const void* host, int64_t bytes) const {
    Lock held(stream_->lock);
    stream_->driver->enter();
    stream_->driver->copy_in(array, host, bytes);
    stream_->driver->synchronize();
}

std::unique_ptr<OpKernel> CudaDevice::op(Variant variant, const LayerSpec& layer, DType dtype) {
    return kernels_ ? kernels_->op(variant, layer, dtype) : nullptr;
}

void CudaDevice::run(Call& call, Cancellation*) {
    Lock held = ready();
    stream_->driver->submit(call);
}

std::unique_ptr<Replay> CudaDevice::record(std::vector<Call*> calls, std::vector<Shared> reads,
                                           std::vector<Shared> writes) {
    auto enqueue = [driver = stream_->driver, calls = std::move(calls), reads = std::move(reads),
                    writes = std::move(writes)] {
        copy_in(*driver, reads);
        submit(*driver, calls);
        copy_out(*driver, writes);
    };
    return std::make_unique<RecordedStep>(stream_, recorded(enqueue, enqueue));
}

std::unique_ptr<Call> CudaDevice::sampling(const std::string& kernel, const Tensors& arrays) {
    Lock held = ready();
    return kernels_->sampling(kernel, arrays);
}

std::unique_ptr<Call> CudaDevice::exclude(const Tensors& arrays, int64_t layer_stride) {
    Lock held = ready();
    return kernels_->exclude(arrays, layer_stride);
}

std::shared_ptr<Recording> CudaDevice::graph(std::vector<Call*> calls, std::vector<Call*> warm) {
    return recorded([driver = stream_->driver, calls = std::move(calls)] { submit(*driver, calls); },
                    [driver = stream_->driver, warm = std::move(warm)] { submit(*driver, warm); });
}

std::shared_ptr<Recording> CudaDevice::chain(std::vector<std::shared_ptr<Recording>> recordings) {
    Lock held = ready();
    auto parts = std::make_shared<std::vector<std::shared_ptr<Recording>>>(std::move(recordings));
    auto enqueue = [parts] {
        for (const auto& one : *parts) one->launch();
    };
    auto refresh = [parts] {
        for (const auto& one : *parts) static_cast<CudaRecording&>(*one).refresh();
    };
    auto make = [parts, stream = stream_]() -> std::unique_ptr<Graph> {
        std::vector<const Graph*> graphs;
        for (const auto& one : *parts) graphs.push_back(static_cast<const CudaRecording&>(*one).graph());
        // A recording without a graph has been reported already.
        if (std::find(graphs.begin(), graphs.end(), nullptr) != graphs.end()) return nullptr;
        try {
            return stream->driver->chain(graphs);
        } catch (const BackendError& error) {
            // cuBLAS allocates memory inside a graph for some products, and no such graph can be part of another.
            // Launched one after the other they take as long.
            report(*stream, LogLevel::info,
                   "the evaluations of a run are launched one by one, because graphs cannot be joined", error);
            return nullptr;
        }
    };
    return std::make_shared<CudaRecording>(stream_, enqueue, refresh, make);
}

void CudaDevice::invalidate() {
    Lock held = ready();
    stream_->driver->synchronize();
    ++stream_->state;
}

std::shared_ptr<CudaRecording> CudaDevice::recorded(std::function<void()> enqueue, std::function<void()> warm) {
    Lock held = ready();
    auto warm_up = [driver = stream_->driver, warm = std::move(warm)] {
        for (int run = 0; run < kWarmRuns; ++run) warm();
        driver->synchronize();
    };
    auto make = [stream = stream_, enqueue]() -> std::unique_ptr<Graph> {
        try {
            return stream->driver->capture(enqueue);
        } catch (const BackendError& error) {
            report(*stream, LogLevel::warning, "this step runs without a CUDA graph, call by call", error);
            return nullptr;
        }
    };
    return std::make_shared<CudaRecording>(stream_, enqueue, warm_up, make);
}

}  // namespace ebca::internal
