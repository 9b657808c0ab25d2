// What is known of the latents (KnownLatents) in device memory, for all evaluations of a run, as
// runtime/sampling/device_known.py has it. Before each scheduler step, the kernel "embed" copies known_i to where the
// sampler has `start`: it copies words of 32 bits out of a table, whatever they mean.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "contract/tensor.hpp"
#include "devices/device.hpp"
#include "sampling/noise.hpp"
#include "sampling/schedulers.hpp"

namespace ebca::internal {

class DeviceKnown {
  public:
    // device: has graphs, and outlives this. step: int32 [1], the index of the evaluation; start: [n,C,h,w] of the
    // sampler, both on the device. room: evaluations at most.
    DeviceKnown(Device& device, const Tensor& step, const Tensor& start, int64_t room);

    // Compute and upload known_0, known_1, ... of a run. start: [n,C,h,w] on the host, times init_noise_sigma.
    void begin(const SchedulerTable& table, const Tensor& start, std::vector<NormalStream>& streams);

    Call& call() { return *call_; }

  private:
    Device& device_;
    SharedMemory known_, base_, stride_;
    std::unique_ptr<Call> call_;
};

}  // namespace ebca::internal
