// Sampling on a device without the host, as runtime/sampling/graph.py does it: the whole run of a table as one graph
// launch, or one launch per evaluation when a callback observes it.
//
// Latents, the history of noise predictions, and everything that changes between evaluations are in device memory. A
// counter there holds the index of the evaluation, so one recorded evaluation serves all of them. Three kernels
// surround the UNet (plugins/sampling/__init__.py has their equations): "begin" writes its inputs, "end" applies
// guidance and takes the scheduler's step, "advance" counts. A fourth, "embed", copies the time embeddings of an
// evaluation out of a table that one call has filled before the run (TimeTable). Where subjects are kept apart, a fifth
// makes the bias of the next evaluation (DeviceExclusion). The largest sums are in float64, in the order of the host's.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "contract/tensor.hpp"
#include "devices/device.hpp"
#include "execution/control.hpp"
#include "execution/executor.hpp"
#include "execution/time_table.hpp"
#include "sampling/device_known.hpp"
#include "sampling/exclusion.hpp"
#include "sampling/noise.hpp"
#include "sampling/sampler.hpp"
#include "sampling/schedulers.hpp"

namespace ebca::internal {

// Inputs of one run, which must outlive it. The prompts' embeddings are in the executor's contexts already.
struct TableRun {
    const SchedulerTable& table;
    const Array& latents;                  // [n,C,h,w], initial latents of unit variance
    const std::vector<Control>& controls;  // one per evaluation
    std::optional<double> guidance_scale;  // none: conditional rows only
    const Array* extra_channels;           // see NoisePredictor
    bool carry_edits;                      // contexts of editing prompts go from one evaluation to the next
    const SubjectInputs* subjects;         // see NoisePredictor
    std::vector<NormalStream>& streams;    // of a stochastic table: what `latents` were drawn from
};

// Buffers and recordings of one executor. Use from one thread at a time.
class GraphSampler {
  public:
    // executor: its buffers are on the device, with one row per image, or two with guidance. device: has graphs. Both
    // must outlive it.
    GraphSampler(Executor& executor, Device& device, int64_t images)
        : executor_(executor), device_(device), images_(images) {}

    // Bind and record everything that `run` needs, upload its inputs, and embed its timesteps. Errors as of
    // `Device::allocate`.
    void prepare(const TableRun& run);

    // Run every evaluation; `prepare` with the same inputs comes first. With `watch.on_step` the host waits for every
    // evaluation. Without it all of them are one launch, each gets an equal share of the time, and cancelling takes
    // effect at its end. CancelledError; NumericalError that names the timestep.
    Samples run(const TableRun& run, const Watch& watch);

  private:
    Recording& recorded(Variant variant);
    DeviceKnown& known();
    Recording& chained(const std::vector<Variant>& variants);
    void reserve(int64_t evaluations);
    std::map<std::string, SharedMemory> allocate(int64_t room);
    std::unique_ptr<TimeTable> time_table(std::map<std::string, SharedMemory>& state);
    void fill(const TableRun& run);
    Tensors arrays() const;
    void wait(const TableRun& run, Array& latents);
    const Tensor& host(const char* name) const { return state_.at(name).shared().host; }
    int32_t& number(const char* name) const { return *static_cast<int32_t*>(host(name).data); }

    Executor& executor_;
    Device& device_;
    int64_t images_;
    int64_t room_ = 0;  // evaluations that fit the buffers
    std::map<std::string, SharedMemory> state_;
    std::optional<Memory> history_;     // [room,n,C,h,w]
    std::unique_ptr<TimeTable> table_;  // null: each evaluation embeds its timestep
    std::map<std::string, std::unique_ptr<Call>> kernels_;
    std::unique_ptr<DeviceExclusion> exclusion_;  // null: the executor has no groups of tokens
    std::unique_ptr<DeviceKnown> known_;          // null: no stochastic scheduler has run
    bool draws_ = false;                          // whether this run's scheduler is stochastic
    std::map<std::pair<Variant, bool>, std::shared_ptr<Recording>> recorded_;
    // The evaluations of the latest run as one launch.
    std::pair<std::pair<std::vector<Variant>, bool>, std::shared_ptr<Recording>> chain_;
};

}  // namespace ebca::internal
