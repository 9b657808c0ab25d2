// Where buffers live and how a step is replayed, as runtime/devices/ has it: on the CPU a recorded step is a list of
// bound calls, on CUDA it is a graph (cuda_device.hpp).
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.hpp"
#include "cancellation.hpp"
#include "contract/manifest.hpp"
#include "contract/tensor.hpp"
#include "contract/variant.hpp"

namespace ebca::internal {

// An array of a device, and the host's side of it: the same memory on the CPU, a copy elsewhere.
struct Shared {
    Tensor array;
    Tensor host;
    std::shared_ptr<void> owner;  // of a copy
};

// A recorded step.
class Replay {
  public:
    virtual ~Replay() = default;
    // Run it, and let the host see what it writes. CancelledError as soon as that is requested; null: never.
    virtual void run(Cancellation* cancellation) = 0;
};

// Recorded work of a device that samples without the host.
class Recording {
  public:
    virtual ~Recording() = default;
    // Enqueue it without waiting for it.
    virtual void launch() = 0;
};

// A device that runs several evaluations without the host. Calls and arrays must outlive what they are recorded in or
// bound to.
class GraphDevice {
  public:
    virtual ~GraphDevice() = default;
    // One of the kernels of sampling/graph_sampler.hpp, by name, bound to its arrays.
    virtual std::unique_ptr<Call> sampling(const std::string& kernel, const Tensors& arrays) = 0;
    // The kernel of sampling/exclusive_attention.hpp, bound to its arrays by name.
    virtual std::unique_ptr<Call> exclude(const Tensors& arrays, int64_t layer_stride) = 0;
    // One launch of all of `calls`. Those in `warm` run a few times before they are recorded.
    virtual std::shared_ptr<Recording> graph(std::vector<Call*> calls, std::vector<Call*> warm) = 0;
    // One launch of several recordings of this device, in order.
    virtual std::shared_ptr<Recording> chain(std::vector<std::shared_ptr<Recording>> recordings) = 0;
};

// A device's own kernels for the op between segments, of one variant and layer. Tensors by the op's names.
class OpKernel {
  public:
    virtual ~OpKernel() = default;
    // Scratch memory that a call needs; calls that run one after the other may share it.
    virtual int64_t scratch_bytes(const Tensors& inputs) const = 0;
    // As Runner::bind. scratch: of the device, null if none is needed.
    virtual std::unique_ptr<Call> bind(const Tensors& inputs, const Tensors& outputs, void* scratch) const = 0;
};

// One kind of memory and execution. Thread-safe.
class Device {
  public:
    virtual ~Device() = default;
    virtual const std::string& name() const = 0;

    // For sampling without the host; null if the device has none.
    virtual GraphDevice* graphs() { return nullptr; }

    // std::bad_alloc, or DeviceMemoryError that says what is full.
    virtual Memory allocate(int64_t bytes) = 0;

    // Let the host read and write an array of this device.
    virtual Shared share(const Tensor& array) = 0;

    // Bring what the host wrote to the device.
    virtual void upload(const std::vector<Shared>& arrays) = 0;

    // Wait for the device, and let the host see its arrays.
    virtual void download(const std::vector<Shared>& arrays) = 0;

    // Copy from memory that the caller named as a GPU's, and wait. ParameterError where this device has none.
    virtual void read(void* host, const void* array, int64_t bytes) const = 0;

    // Copy to memory of this GPU, and wait. ParameterError where this device is none.
    virtual void write(void* array, const void* host, int64_t bytes) const = 0;

    // This device's kernel for the op; null: the engine runs its graph.
    virtual std::unique_ptr<OpKernel> op(Variant variant, const LayerSpec& layer, DType dtype) = 0;

    // Hold while engines are opened and bound: nothing else uses the device meanwhile.
    virtual std::unique_lock<std::recursive_mutex> ready() = 0;

    // Run one bound call, outside of a recorded step. CancelledError as soon as that is requested, on devices that can
    // stop a graph; null: never.
    virtual void run(Call& call, Cancellation* cancellation) = 0;

    // Wait for recorded work, and record everything again before its next use: memory that it uses as scratch may be
    // given away from now on.
    virtual void invalidate() {}

    // One replay that uploads `reads`, runs all of `calls` in order, and downloads `writes`. The calls must outlive it.
    virtual std::unique_ptr<Replay> record(std::vector<Call*> calls, std::vector<Shared> reads,
                                           std::vector<Shared> writes) = 0;
};

// Memory for one array that the host and the device use.
class SharedMemory {
  public:
    SharedMemory(Device& device, const Shape& shape, DType dtype);
    const Shared& shared() const { return shared_; }

  private:
    Memory memory_;
    Shared shared_;
};

// Host memory; a recorded step is a list of bound calls, in and between which it can be cancelled.
class CpuDevice : public Device {
  public:
    const std::string& name() const override { return name_; }
    Memory allocate(int64_t bytes) override { return Memory::host(bytes); }
    Shared share(const Tensor& array) override { return {array, array, nullptr}; }
    void upload(const std::vector<Shared>&) override {}
    void download(const std::vector<Shared>&) override {}
    void read(void* host, const void* array, int64_t bytes) const override;
    void write(void* array, const void* host, int64_t bytes) const override;
    std::unique_ptr<OpKernel> op(Variant, const LayerSpec&, DType) override { return nullptr; }
    std::unique_lock<std::recursive_mutex> ready() override { return {}; }
    void run(Call& call, Cancellation* cancellation) override;
    std::unique_ptr<Replay> record(std::vector<Call*> calls, std::vector<Shared> reads,
                                   std::vector<Shared> writes) override;

  private:
    std::string name_ = "cpu";
};

// Kind and index of a device's name: ("cuda", 1) for "cuda:1". ParameterError for a name that is none.
std::pair<std::string, int> parse_device(const std::string& name);

// Run a graph once on copies of arrays of the host. CancelledError as Device::run.
void run_once(Device& device, const Runner& runner, const Tensors& inputs, const Tensors& outputs,
              Cancellation* cancellation);

}  // namespace ebca::internal
