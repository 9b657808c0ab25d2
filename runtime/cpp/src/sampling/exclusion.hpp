// Exclusive attention between the evaluations of a run: its state, on the host or on a device.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "devices/device.hpp"
#include "execution/guided.hpp"
#include "sampling/exclusive_attention.hpp"
#include "sampling/subjects.hpp"

namespace ebca::internal {

// Tensors of `ExclusiveAttention` by name, but for "step", "maps" and "bias".
class ExclusionState {
  public:
    // evaluations: rows of the table of strengths. device: of the arrays.
    ExclusionState(const GuidedTensors& guided, Device& device, int64_t evaluations);

    // Write what a run starts from: row i of the strengths has those that the bias of evaluation i + 1 is made with, or
    // zeros where `inputs` does not say them. The host's side of `guided` gets the tokens' groups, and the bias of the
    // first evaluation. The last rows of `guided` are the images; those before them are unconditional.
    void begin(GuidedTensors& guided, const SubjectInputs& inputs);

    // The host's side, for `maps` on the host.
    ExclusiveAttention tensors(const GuidedTensors& guided, const int32_t* step, const float* maps) const;

    const std::map<std::string, SharedMemory>& memory() const { return memory_; }

  private:
    template <typename T>
    T* host(const char* name) const {
        return static_cast<T*>(memory_.at(name).shared().host.data);
    }

    std::map<std::string, SharedMemory> memory_;
    int64_t evaluations_;
};

// Keeps subjects apart in a run whose host works between evaluations.
class HostExclusion {
  public:
    // Both must outlive it. guided: of the executor.
    HostExclusion(GuidedTensors& guided, const SubjectInputs& inputs);

    // Make the bias of an evaluation from the maps of the one before; the first has its bias already. control: index of
    // its strengths.
    void apply(size_t control);

  private:
    GuidedTensors& guided_;
    const SubjectInputs& inputs_;
    CpuDevice cpu_;
    ExclusionState state_;
    int32_t step_ = 0;  // says only whether averages begin, and which of two strengths count
    bool begun_ = false;
};

// Keeps subjects apart in runs that a device makes without the host.
class DeviceExclusion {
  public:
    // step: the sampler's counter of evaluations, int32 [1] on the device. evaluations: of the longest run. guided,
    // device: must outlive it; the device has graphs.
    DeviceExclusion(GuidedTensors& guided, Device& device, const Tensor& step, int64_t evaluations);

    // Write and upload what a run starts from. The executor uploads the bias.
    void begin(const SubjectInputs& inputs);

    // The kernel, to be enqueued after an evaluation and before the counter is advanced.
    Call& call() { return *call_; }

  private:
    GuidedTensors& guided_;
    Device& device_;
    ExclusionState state_;
    std::unique_ptr<Call> call_;
};

}  // namespace ebca::internal
