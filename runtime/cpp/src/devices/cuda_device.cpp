#include "devices/cuda_device.hpp"

#include <algorithm>
#include <new>

#include "error.hpp"

namespace ebca {
namespace {

using Lock = std::unique_lock<std::recursive_mutex>;

int64_t bytes_of(const Tensor& tensor) {
    return byte_size(tensor.shape, tensor.dtype);
}

void copy_in(Driver& driver, const std::vector<Shared>& arrays) {
    for (const Shared& one : arrays) driver.copy_in(one.array.data, one.host.data, bytes_of(one.host));
}

void copy_out(Driver& driver, const std::vector<Shared>& arrays) {
    for (const Shared& one : arrays) driver.copy_out(one.host.data, one.array.data, bytes_of(one.host));
}

void submit(Driver& driver, const std::vector<Call*>& calls) {
    for (Call* call : calls) driver.submit(*call);
}

}  // namespace

// Work of the stream: one graph, or call by call if it could not be captured.
class CudaRecording : public Recording {
  public:
    // enqueue: keeps alive what the graph uses.
    CudaRecording(std::shared_ptr<Driver> driver, std::shared_ptr<std::recursive_mutex> lock,
                  std::function<void()> enqueue)
        : driver_(std::move(driver)), lock_(std::move(lock)), enqueue_(std::move(enqueue)) {}

    // Returns why there is no graph, or "".
    std::string make(const std::function<std::unique_ptr<Graph>()>& graph) {
        try {
            graph_ = graph();
        } catch (const BackendError& error) {
            return error.what();
        }
        return "";
    }

    void launch() override {
        Lock held(*lock_);
        driver_->enter();
        if (graph_) {
            driver_->launch(*graph_);
        } else {
            enqueue_();
        }
    }

    const Graph* graph() const { return graph_.get(); }  // null: none

  private:
    std::shared_ptr<Driver> driver_;
    std::shared_ptr<std::recursive_mutex> lock_;
    std::function<void()> enqueue_;
    std::unique_ptr<Graph> graph_;
};

namespace {

class RecordedStep : public Replay {
  public:
    RecordedStep(std::shared_ptr<Driver> driver, std::shared_ptr<std::recursive_mutex> lock,
                 std::shared_ptr<CudaRecording> recording)
        : driver_(std::move(driver)), lock_(std::move(lock)), recording_(std::move(recording)) {}

    void run(const std::atomic<bool>* cancelled) override {
        if (cancelled && cancelled->load(std::memory_order_relaxed)) throw CancelledError("cancelled in an evaluation");
        Lock held(*lock_);
        recording_->launch();
        driver_->synchronize();
    }

  private:
    std::shared_ptr<Driver> driver_;
    std::shared_ptr<std::recursive_mutex> lock_;
    std::shared_ptr<CudaRecording> recording_;
};

}  // namespace

CudaDevice::CudaDevice(std::shared_ptr<Driver> driver, std::shared_ptr<GpuKernels> kernels,
                       std::function<void(const std::string&)> warn)
    : driver_(std::move(driver)),
      kernels_(std::move(kernels)),
      warn_(std::move(warn)),
      lock_(std::make_shared<std::recursive_mutex>()) {}

Lock CudaDevice::ready() {
    Lock held(*lock_);
    driver_->enter();
    return held;
}

Memory CudaDevice::allocate(int64_t bytes) {
    Lock held = ready();
    try {
        return Memory({driver_->allocate(bytes), [driver = driver_](void* memory) { driver->free(memory); }}, bytes);
    } catch (const std::bad_alloc&) {
        throw ParameterError(text("the GPU has no ", (bytes + 999999) / 1000000, " MB left"),
                             "make a smaller image, or fewer at once");
    }
}

Shared CudaDevice::share(const Tensor& array) {
    Lock held = ready();
    std::shared_ptr<void> mirror(driver_->allocate_host(bytes_of(array)),
                                 [driver = driver_](void* memory) { driver->free_host(memory); });
    return {array, {mirror.get(), array.dtype, array.shape}, mirror};
}

void CudaDevice::upload(const std::vector<Shared>& arrays) {
    Lock held = ready();
    copy_in(*driver_, arrays);
}

void CudaDevice::download(const std::vector<Shared>& arrays) {
    Lock held = ready();
    copy_out(*driver_, arrays);
    driver_->synchronize();
}

void CudaDevice::read(void* host, const void* array, int64_t bytes) const {
    Lock held(*lock_);
    driver_->enter();
    driver_->copy_out(host, array, bytes);
    driver_->synchronize();
}

std::unique_ptr<OpKernel> CudaDevice::op(Variant variant, const LayerSpec& layer, DType dtype) {
    return kernels_ ? kernels_->op(variant, layer, dtype) : nullptr;
}

void CudaDevice::run(Call& call) {
    Lock held = ready();
    driver_->submit(call);
}

std::unique_ptr<Replay> CudaDevice::record(std::vector<Call*> calls, std::vector<Shared> reads,
                                           std::vector<Shared> writes) {
    Lock held = ready();
    auto enqueue = [driver = driver_, calls = std::move(calls), reads = std::move(reads), writes = std::move(writes)] {
        copy_in(*driver, reads);
        submit(*driver, calls);
        copy_out(*driver, writes);
    };
    // Engines allocate and choose algorithms when they run first, which a capture must not see.
    enqueue();
    driver_->synchronize();
    return std::make_unique<RecordedStep>(driver_, lock_, captured(std::move(enqueue)));
}

std::unique_ptr<Call> CudaDevice::sampling(const std::string& kernel, const Tensors& arrays) {
    Lock held = ready();
    return kernels_->sampling(kernel, arrays);
}

std::shared_ptr<Recording> CudaDevice::graph(std::vector<Call*> calls, const std::vector<Call*>& warm) {
    Lock held = ready();
    submit(*driver_, warm);
    driver_->synchronize();
    return captured([driver = driver_, calls = std::move(calls)] { submit(*driver, calls); });
}

std::shared_ptr<Recording> CudaDevice::chain(std::vector<std::shared_ptr<Recording>> recordings) {
    Lock held = ready();
    std::vector<const Graph*> graphs;
    for (const auto& one : recordings) graphs.push_back(static_cast<const CudaRecording&>(*one).graph());
    auto made = std::make_shared<CudaRecording>(driver_, lock_, [recordings = std::move(recordings)] {
        for (const auto& one : recordings) one->launch();
    });
    // A recording without a graph has been reported already.
    if (std::find(graphs.begin(), graphs.end(), nullptr) != graphs.end()) return made;
    std::string refused = made->make([&] { return driver_->chain(graphs); });
    if (!refused.empty() && warn_) warn_("the evaluations of a run are launched one by one: " + refused);
    return made;
}

std::shared_ptr<CudaRecording> CudaDevice::captured(std::function<void()> enqueue) {
    auto made = std::make_shared<CudaRecording>(driver_, lock_, enqueue);
    std::string refused = made->make([&] { return driver_->capture(enqueue); });
    if (!refused.empty() && warn_) warn_("this step runs without a CUDA graph, call by call: " + refused);
    return made;
}

}  // namespace ebca
