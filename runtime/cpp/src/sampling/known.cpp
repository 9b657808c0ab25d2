#include "sampling/known.hpp"

#include <algorithm>
#include <utility>

namespace ebca::internal {

KnownLatents::KnownLatents(const SchedulerTable& table, const Array& start, std::vector<NormalStream>& streams)
    : weights_(table.recurrence), streams_(streams) {
    before_.emplace_back(start.values.begin(), start.values.end());
    for (int64_t i = 0; i < weights_.evaluations(); ++i) {
        for (int64_t k = 0; k < weights_.fresh; ++k) {
            if (weights_.of_fresh(i)[k] != 0) draws_ = std::max(draws_, i - k + 1);
        }
    }
}

void KnownLatents::next(Array& out) {
    noises_.push_front(index_ < draws_ ? draw(streams_, out.shape) : Array(out.shape));
    if (static_cast<int64_t>(noises_.size()) > weights_.fresh) noises_.pop_back();
    const double *a = weights_.of_latents(index_), *c = weights_.of_fresh(index_);
    std::vector<double> total(out.values.size(), 0.0);
    for (size_t k = 0; k < before_.size(); ++k) {
        for (size_t j = 0; j < total.size(); ++j) total[j] += before_[k][j] * a[k];
    }
    for (size_t k = 0; k < noises_.size(); ++k) {
        const std::vector<float>& noise = noises_[k].values;
        for (size_t j = 0; j < total.size(); ++j) total[j] += static_cast<double>(noise[j]) * c[k];
    }
    for (size_t j = 0; j < total.size(); ++j) out.values[j] = static_cast<float>(total[j]);
    before_.push_front(std::move(total));
    if (static_cast<int64_t>(before_.size()) > weights_.latents) before_.pop_back();
    ++index_;
}

}  // namespace ebca::internal
