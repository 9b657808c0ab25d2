// What is known of the latents before the UNet has run, as runtime/sampling/known.py computes it: in a stochastic
// scheduler, the part of the latents that comes from `start` and from the noise z_i that evaluation i draws,
//
//     known_i = sum_{k < K} a[i, k] known_{i-1-k} + sum_{k < M} c[i, k] z_{i-k}          (known_{-1} = start)
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "contract/tensor.hpp"
#include "sampling/noise.hpp"
#include "sampling/schedulers.hpp"

namespace ebca::internal {

// known_0, known_1, ... of one run, one after the other.
class KnownLatents {
  public:
    // table: stochastic; must outlive this, as `streams` must, which move on. start: initial latents times
    // init_noise_sigma.
    KnownLatents(const SchedulerTable& table, const Array& start, std::vector<NormalStream>& streams);

    // The next one, of the shape of `start`. Summed in float64, in the order of the Python runtime.
    void next(Array& out);

  private:
    const Recurrence& weights_;
    std::vector<NormalStream>& streams_;
    int64_t draws_ = 0;  // evaluations that draw: later noise has no weight
    int64_t index_ = 0;
    std::deque<std::vector<double>> before_;  // known_{i-1}, known_{i-2}, ...
    std::deque<Array> noises_;                // z_i, z_{i-1}, ...
};

}  // namespace ebca::internal
