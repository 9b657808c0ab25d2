#include "conditioning/schedules.hpp"

#include <cmath>
#include <utility>

#include "error.hpp"
#include "parameters.hpp"

namespace ebca::internal {
namespace {

using Kind = Schedule::Kind;

double exact(const Schedule& schedule, int64_t i, int64_t on_from) {
    switch (schedule.kind) {
        case Kind::step:
            return i < on_from ? 0.0 : schedule.value;
        case Kind::reverse_step:
            return i < on_from ? schedule.value : 0.0;
        case Kind::linear:
            return schedule.value + schedule.parameter * static_cast<double>(i);
        case Kind::exponential:
            return schedule.value * std::pow(schedule.parameter, static_cast<double>(i));
        case Kind::values:
            return schedule.values[static_cast<size_t>(i)];
        default:
            return schedule.value;
    }
}

}  // namespace

std::vector<float> resolve(const Schedule& schedule, int64_t steps, int64_t evaluations, const std::string& name,
                           const std::string& scheduler) {
    bool has_tau = schedule.kind == Kind::step || schedule.kind == Kind::reverse_step;
    for (auto [field, value] : {std::pair{"value", schedule.value}, std::pair{"parameter", schedule.parameter}}) {
        if (!std::isfinite(value)) throw rules::schedule_number(name, field, value);
    }
    if (has_tau && !(schedule.parameter >= 0 && schedule.parameter <= 1)) {
        throw rules::schedule_tau(name, schedule.parameter);
    }
    if (schedule.kind == Kind::values && static_cast<int64_t>(schedule.values.size()) != evaluations) {
        throw rules::schedule_length(name, schedule.values.size(), scheduler, steps, evaluations);
    }
    auto on_from = has_tau ? static_cast<int64_t>(static_cast<double>(steps) * schedule.parameter) : 0;
    std::vector<float> out;
    for (int64_t i = 0; i < evaluations; ++i) {
        double value = exact(schedule, i, on_from);
        // A value beyond the range of float32 becomes infinite.
        auto rounded = static_cast<float>(value);
        if (!std::isfinite(rounded)) {
            throw rules::schedule_value(name, value, i);
        }
        out.push_back(rounded);
    }
    return out;
}

}  // namespace ebca::internal
