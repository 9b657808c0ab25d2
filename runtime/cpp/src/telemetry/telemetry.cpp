#include "telemetry/telemetry.hpp"

#include <algorithm>

namespace ebca::internal {

Telemetry::Telemetry(const Executor& executor, int64_t images, bool energies, bool attention) : energies_(energies) {
    if (attention) attention_.emplace(executor.unet(), executor.sizes(), images);
}

void Telemetry::record(const Executor& executor) {
    if (energies_) recorded_.push_back(executor.energies());
}

Array Telemetry::stacked(size_t term) const {
    if (recorded_.empty()) return {};
    Shape shape = recorded_.front()[term].shape;
    shape.insert(shape.begin(), static_cast<int64_t>(recorded_.size()));
    Array out(shape);
    auto to = out.values.begin();
    for (const Executor::Energies& one : recorded_) {
        to = std::copy(one[term].values.begin(), one[term].values.end(), to);
    }
    return out;
}

}  // namespace ebca::internal
