// CUDA: memory of a GPU, and steps that are replayed as one CUDA graph, as runtime/devices/cuda.py has it.
//
// The host works on pinned copies of the arrays it reads and writes. A recorded step holds, in one graph, the copies to
// the GPU, everything that engines and kernels enqueue, and the copies back; so a value that changes from step to step
// is never part of the recording, and a step is one launch and one wait. Sampling without the host chains recordings
// without such copies: a whole run is one launch.
//
// A recording may be out of date, because memory that it uses as scratch was given away (`Device::invalidate`). It is
// then recorded again before its next launch.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "devices/device.hpp"
#include "devices/driver.hpp"
#include "devices/gpu_kernels.hpp"
#include "log.hpp"

namespace ebca::internal {

class CudaRecording;

// What recordings share with their device, which they may outlive.
struct CudaStream {
    std::shared_ptr<Driver> driver;
    Log log;
    std::recursive_mutex lock;
    uint64_t state = 1;  // recordings of another one are out of date
};

// Sessions of several threads share the stream, one graph after the other.
class CudaDevice : public Device, public GraphDevice {
  public:
    // kernels: on the same driver; null: the engine runs the op's graphs, and the host samples. log: gets a line where
    // a step or a run is no single graph; may be empty.
    CudaDevice(std::shared_ptr<Driver> driver, std::shared_ptr<GpuKernels> kernels, Log log);

    const std::string& name() const override { return stream_->driver->name(); }
    GraphDevice* graphs() override { return kernels_ ? this : nullptr; }
    Memory allocate(int64_t bytes) override;
    Shared share(const Tensor& array) override;
    void upload(const std::vector<Shared>& arrays) override;
    void download(const std::vector<Shared>& arrays) override;
    void read(void* host, const void* array, int64_t bytes) const override;
    void write(void* array, const void* host, int64_t bytes) const override;
    std::unique_ptr<OpKernel> op(Variant variant, const LayerSpec& layer, DType dtype) override;
    std::unique_lock<std::recursive_mutex> ready() override;
    void run(Call& call, Cancellation* cancellation) override;
    void invalidate() override;
    std::unique_ptr<Replay> record(std::vector<Call*> calls, std::vector<Shared> reads,
                                   std::vector<Shared> writes) override;
    std::unique_ptr<Call> sampling(const std::string& kernel, const Tensors& arrays) override;
    std::unique_ptr<Call> exclude(const Tensors& arrays, int64_t layer_stride) override;
    std::shared_ptr<Recording> graph(std::vector<Call*> calls, std::vector<Call*> warm) override;
    std::shared_ptr<Recording> chain(std::vector<std::shared_ptr<Recording>> recordings) override;

  private:
    std::shared_ptr<CudaRecording> recorded(std::function<void()> enqueue, std::function<void()> warm);

    std::shared_ptr<CudaStream> stream_;
    std::shared_ptr<GpuKernels> kernels_;
};

}  // namespace ebca::internal
