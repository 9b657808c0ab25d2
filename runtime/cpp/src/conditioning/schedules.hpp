// Schedules of gamma and alpha over the denoising steps, as the authors of EBCA define them. Entry i belongs to
// evaluation i of the UNet; `tau` counts in steps, not in evaluations.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ebca::internal {

struct Schedule {
    enum class Kind { constant, step, reverse_step, linear, exponential, values };

    Kind kind = Kind::constant;
    double value = 0;
    double parameter = 0;        // tau of step and reverse_step, ratio of linear and exponential
    std::vector<double> values;  // of Kind::values, one per evaluation
};

// One value per evaluation. name, scheduler: for the messages. ParameterError for a wrong length, a tau outside 0 to 1,
// or a value that is not finite in float32.
std::vector<float> resolve(const Schedule& schedule, int64_t steps, int64_t evaluations, const std::string& name,
                           const std::string& scheduler);

}  // namespace ebca::internal
