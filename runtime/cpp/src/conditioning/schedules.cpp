#include "conditioning/schedules.hpp"

#include <cmath>

#include "error.hpp"

namespace ebca {
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
    if (!std::isfinite(schedule.value) || !std::isfinite(schedule.parameter)) {
        throw ParameterError(
            text(name, " is a schedule of ", schedule.value, " and ", schedule.parameter, "; give finite numbers"));
    }
    if (has_tau && !(schedule.parameter >= 0 && schedule.parameter <= 1)) {
        throw ParameterError(text(name, ": tau is ", schedule.parameter, "; it is a share of the steps, from 0 to 1"));
    }
    if (schedule.kind == Kind::values && static_cast<int64_t>(schedule.values.size()) != evaluations) {
        throw ParameterError(text(name, " has ", schedule.values.size(), " values, but ", scheduler, " with ", steps,
                                  " steps makes ", evaluations,
                                  " evaluations: give one value per evaluation, a single number, or a Schedule"));
    }
    auto on_from = has_tau ? static_cast<int64_t>(static_cast<double>(steps) * schedule.parameter) : 0;
    std::vector<float> out;
    for (int64_t i = 0; i < evaluations; ++i) {
        double value = exact(schedule, i, on_from);
        // A value beyond the range of float32 becomes infinite.
        auto rounded = static_cast<float>(value);
        if (!std::isfinite(rounded)) {
            throw ParameterError(
                text(name, ": value ", value, " at evaluation ", i, " is not a finite float32 number"));
        }
        out.push_back(rounded);
    }
    return out;
}

}  // namespace ebca
