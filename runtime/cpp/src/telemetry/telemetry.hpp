// What is recorded of a generation beside its images.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "execution/executor.hpp"
#include "telemetry/attention_maps.hpp"

namespace ebca::internal {

class Telemetry {
  public:
    // images: n, as for AttentionMaps.
    Telemetry(const Executor& executor, int64_t images, bool energies, bool attention);

    bool records_energies() const { return energies_; }
    // Null: not recorded.
    AttentionMaps* attention() { return attention_ ? &*attention_ : nullptr; }

    // Keep the energies of the evaluation that ran last, if they are recorded.
    void record(const Executor& executor);

    // [m,L,B,S] each, of m evaluations and L layers; empty if they are not recorded.
    Array attention_energies() const { return stacked(0); }
    Array norm_energies() const { return stacked(1); }
    // [n,T,h,w]; empty if it is not recorded.
    Array attention_maps() const { return attention_ ? attention_->maps() : Array(); }

  private:
    Array stacked(size_t term) const;

    bool energies_;
    std::optional<AttentionMaps> attention_;
    std::vector<Executor::Energies> recorded_;
};

}  // namespace ebca::internal
