// Sampling from scheduler tables: one weighted sum per step, equal to diffusers by construction. After evaluation i
//
//     x_i = known_i + sum_{j <= i} row_i[j + 1] e_j
//
// with e_j the guided noise predictions so far, and known_i what does not depend on them: row_i[0] start, with `start`
// the initial latents times `init_noise_sigma`, and in a stochastic scheduler also the noise drawn so far
// (KnownLatents).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "contract/directory.hpp"
#include "contract/tensor.hpp"
#include "error.hpp"

namespace ebca::internal {

// What a directory stores of m evaluations: the latents x_i are the sum of a[i, k] x_{i-1-k}, b[i, k] e_{i-k} and
// c[i, k] z_{i-k}, with z_i the noise that a stochastic scheduler draws in evaluation i.
struct Recurrence {
    int64_t latents = 1, noises = 1, fresh = 0;  // K, L, M: how many of each
    std::vector<double> weights;                 // row i: a, b, c

    int64_t width() const { return latents + noises + fresh; }
    int64_t evaluations() const { return static_cast<int64_t>(weights.size()) / width(); }
    const double* of_latents(int64_t i) const { return weights.data() + i * width(); }
    const double* of_noises(int64_t i) const { return of_latents(i) + latents; }
    const double* of_fresh(int64_t i) const { return of_noises(i) + noises; }
    // Whether evaluation `begin` and those after it use only the latents before it, and what comes later.
    bool starts_at(int64_t begin) const;
};

// One scheduler at one step count: m = `evaluations` runs of the UNet (PNDM: one more than `steps`).
struct SchedulerTable {
    std::string name;
    int64_t steps = 0;
    std::vector<double> timesteps;          // [m], inputs of the UNet
    std::vector<double> input_scale;        // [m]: the UNet takes input_scale[i] * latents
    double init_noise_sigma = 1;            // unit-variance noise times this is `start`
    std::vector<std::vector<double>> rows;  // row i has i + 2 values
    Recurrence recurrence;                  // what the rows were expanded from
    int64_t order = 1;                      // evaluations per step; the last step may have fewer
    int64_t skipped = 0;                    // steps skipped at the start

    int64_t evaluations() const { return static_cast<int64_t>(timesteps.size()); }
    // Steps that are run: all except those that `after` skipped.
    int64_t remaining() const { return steps - skipped; }

    // What the UNet's input after an evaluation is, as a multiple of the latents; 1 after the last one.
    double scale_after(int64_t i) const {
        return i + 1 < evaluations() ? input_scale[static_cast<size_t>(i) + 1] : 1.0;
    }

    // Whether the scheduler draws noise at its steps.
    bool stochastic() const { return recurrence.fresh > 0; }
    // The weight of what a sampler adds the noise predictions of evaluation i to: `start`, or in a stochastic scheduler
    // known_i, which has that weight in it already.
    double first_weight(int64_t i) const { return stochastic() ? 1.0 : rows[static_cast<size_t>(i)][0]; }

    // The rest of this table for a start at step `begin` from latents of that noise level. ParameterError if it
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
    // The latents after evaluation i. start: of a stochastic table, known_i.
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

}  // namespace ebca::internal
