// Sampling from scheduler tables: one weighted sum per step, equal to diffusers by construction. After evaluation i
//
//     x_i = row_i[0] start + sum_{j <= i} row_i[j + 1] e_j
//
// with `start` the initial latents times `init_noise_sigma` and e_j the guided noise predictions so far.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "contract/directory.hpp"
#include "contract/tensor.hpp"
#include "error.hpp"

namespace ebca {

// One scheduler at one step count: m = `evaluations` runs of the UNet (PNDM: one more than `steps`).
struct SchedulerTable {
    std::string name;
    int64_t steps = 0;
    std::vector<double> timesteps;          // [m], inputs of the UNet
    std::vector<double> input_scale;        // [m]: the UNet takes input_scale[i] * latents
    double init_noise_sigma = 1;            // unit-variance noise times this is `start`
    std::vector<std::vector<double>> rows;  // row i has i + 2 values
    int64_t skipped = 0;                    // evaluations skipped at the start

    int64_t evaluations() const { return static_cast<int64_t>(timesteps.size()); }
    // Steps that are run: all except those that `after` skipped.
    int64_t remaining() const { return steps - skipped; }

    // The rest of this table for a start at evaluation `begin` from latents of that noise level. ParameterError if it
    // is not 0 and the scheduler is a multistep one, whose first evaluations would need another table.
    SchedulerTable after(int64_t begin) const;

    // Clean latents at the noise level where this table starts.
    Array add_noise(const Array& clean, const Array& noise, const std::vector<double>& alphas_cumprod) const;
};

// A table and the noise history of one generation.
class Scheduler {
  public:
    Scheduler(const SchedulerTable& table, const Shape& shape);

    // Unit-variance noise to the initial latents.
    Array start(const Array& noise) const;
    // What the UNet takes at evaluation i: input_scale[i] * latents.
    void model_input(int64_t i, const Array& latents, Array& out) const;
    // Where the guided prediction of evaluation i belongs.
    Array& noise(int64_t i) { return noises_[static_cast<size_t>(i)]; }
    // The latents after evaluation i.
    void combine(int64_t i, const Array& start, Array& out);

  private:
    const SchedulerTable& table_;
    std::vector<Array> noises_;
    std::vector<double> sum_;
};

// A name as users write it, as the name in the manifest: "DPM++ 2M" to "dpmpp_2m", "plms" to "pndm".
std::string normalise_name(const std::string& name);

// The scheduler that a user means by `name`, as the manifest names it; "" if it is not among the tables.
std::string find_scheduler(const std::string& name, const std::map<std::string, TableSpec>& tables);

// The error about a scheduler that an engine does not have; it says why if the export left the scheduler out.
ParameterError unknown_scheduler(const SchedulerSection& section, const std::string& name, const std::string& choices);

// Read one table. ParameterError for a name or step count that is not stored, EngineError for a damaged file.
SchedulerTable load_table(const EngineDirectory& directory, const std::string& name, int64_t steps);

// [train_timesteps]: the product of (1 - beta) up to each training timestep. EngineError for a damaged file.
std::vector<double> load_alphas_cumprod(const EngineDirectory& directory);

}  // namespace ebca
