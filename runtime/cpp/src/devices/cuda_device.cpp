#include "devices/cuda_device.hpp"

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

class RecordedStep : public Replay {
  public:
    RecordedStep(std::shared_ptr<Driver> driver, std::shared_ptr<std::recursive_mutex> lock, std::vector<Call*> calls,
                 std::vector<Shared> reads, std::vector<Shared> writes)
        : driver_(std::move(driver)),
          lock_(std::move(lock)),
          calls_(std::move(calls)),
          reads_(std::move(reads)),
          writes_(std::move(writes)) {}

    // Returns why there is no graph, or "".
    std::string record() {
        // Engines allocate and choose algorithms when they run first, which a capture must not see.
        enqueue();
        driver_->synchronize();
        try {
            graph_ = driver_->capture([this] { enqueue(); });
        } catch (const BackendError& error) {
            return error.what();
        }
        return "";
    }

    void run(const std::atomic<bool>* cancelled) override {
        if (cancelled && cancelled->load(std::memory_order_relaxed)) throw CancelledError("cancelled in an evaluation");
        Lock held(*lock_);
        driver_->enter();
        if (graph_) {
            driver_->launch(*graph_);
        } else {
            enqueue();
        }
        driver_->synchronize();
    }

  private:
    void enqueue() {
        copy_in(*driver_, reads_);
        for (Call* call : calls_) driver_->submit(*call);
        copy_out(*driver_, writes_);
    }

    std::shared_ptr<Driver> driver_;
    std::shared_ptr<std::recursive_mutex> lock_;
    std::vector<Call*> calls_;
    std::vector<Shared> reads_, writes_;
    std::unique_ptr<Graph> graph_;  // null: call by call
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
    auto step = std::make_unique<RecordedStep>(driver_, lock_, std::move(calls), std::move(reads), std::move(writes));
    std::string refused = step->record();
    if (!refused.empty() && warn_) warn_("this step runs without a CUDA graph, call by call: " + refused);
    return step;
}

}  // namespace ebca
