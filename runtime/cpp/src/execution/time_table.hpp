// The embeddings of all timesteps of a run, computed in one call. They depend on nothing else, and cost as many
// products for two rows as for a hundred.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "backends/backend.hpp"
#include "contract/tensor.hpp"
#include "execution/block.hpp"
#include "execution/executor.hpp"

namespace ebca::internal {

// A table of embeddings with one row per timestep, for evaluations of one executor.
class TimeTable {
  public:
    // executor: its UNet has a time step. timesteps: [rows] float32 on its device, which the call reads.
    TimeTable(const Executor& executor, const Tensor& timesteps);

    // Fills the table from the timesteps.
    Call& call() { return *call_; }
    // The table as words.
    Tensor words() const { return block_.words(); }
    // By name, the embeddings [rows,...] on the device.
    const std::map<std::string, Tensor>& rows() const { return block_.tensors(); }

    // Where each word of the executor's embeddings comes from, base and stride: word e of an evaluation that reads row
    // i is words[base[e] + i * stride[e]]. Every row of the batch gets the same embedding.
    std::pair<std::vector<int32_t>, std::vector<int32_t>> gather(const Block& target) const;

  private:
    Block block_;
    std::unique_ptr<Call> call_;
};

// Whether the rows of all embeddings are multiples of a word, so that `TimeTable::gather` can name them.
bool in_words(const Block& embeddings);

// The embeddings of timesteps on the host, which writes them into the buffers of an executor there.
class HostEmbeddings {
  public:
    // timesteps: every one that an evaluation may have. ParameterError for one that is not among them when used.
    HostEmbeddings(Executor& executor, std::vector<double> timesteps);

    // Write the embeddings of a timestep into all rows of the executor's buffers.
    void write(double timestep) const;

  private:
    const Block& target_;
    std::vector<double> timesteps_;  // ascending, without repetition
    std::unique_ptr<Memory> times_;
    std::unique_ptr<TimeTable> table_;
};

}  // namespace ebca::internal
