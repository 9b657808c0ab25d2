#include "sampling/schedulers.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <utility>

#include "contract/file.hpp"
#include "error.hpp"
#include "parameters.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

static_assert(platform::kLittleEndian, "tables are little-endian and read as they lie");

// `count` values from value `offset` of a file of the engine directory, which has to hold `total` values: otherwise its
// records are not where the manifest tells.
std::vector<double> read_values(const EngineDirectory& directory, const std::string& name, int64_t offset,
                                int64_t count, int64_t total) {
    int64_t stored = directory.manifest.files.at(name).size;
    if (stored != 8 * total) {
        throw EngineError(text("the scheduler file '", platform::to_utf8(directory.file(name)), "' has ", stored,
                               " bytes instead of ", 8 * total),
                          "copy or export the engine again");
    }
    std::ifstream file = open_file(directory.file(name));
    std::vector<double> values(static_cast<size_t>(count));
    file.seekg(offset * 8);
    file.read(reinterpret_cast<char*>(values.data()), count * 8);
    if (!file) {
        throw EngineError(text("cannot read the scheduler file '", platform::to_utf8(directory.file(name)), "'"),
                          "export the engine again");
    }
    if (!std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); })) {
        throw EngineError(
            text("the scheduler file '", platform::to_utf8(directory.file(name)), "' holds values that are not finite"),
            "export the engine again");
    }
    return values;
}

std::string joined(const std::map<std::string, TableSpec>& tables) {
    std::string out;
    for (const auto& [name, table] : tables) out += (out.empty() ? "" : ", ") + name;
    return out;
}

// The key of a map that a user means by `name`; "" if there is none.
template <class Map>
std::string find_key(const std::string& name, const Map& map) {
    const std::string wanted = normalise_name(name);
    for (const auto& [key, value] : map) {
        if (normalise_name(key) == wanted) return key;
    }
    return "";
}

// The weights of start, e_0 .. e_i in every x_i, from
//
//     x_i = sum_{k < K} a[i, k] x_{i-1-k} + sum_{k < L} b[i, k] e_{i-k}        (x_{-1} = start; zero before)
//
// and noise that is drawn, which is left out here. The operations and their order are those of the Python runtime,
// whose rows have the same bits.
std::vector<std::vector<double>> expand(const Recurrence& from) {
    std::vector<std::vector<double>> rows;
    const std::vector<double> start{1.0};
    for (int64_t i = 0; i < from.evaluations(); ++i) {
        const double *a = from.of_latents(i), *b = from.of_noises(i);
        std::vector<double> row(static_cast<size_t>(i + 2), 0.0);
        for (int64_t k = 0; k < std::min(from.latents, i + 1); ++k) {
            const std::vector<double>& earlier = k == i ? start : rows[static_cast<size_t>(i - 1 - k)];
            for (size_t j = 0; j < earlier.size(); ++j) row[j] += a[k] * earlier[j];
        }
        for (int64_t k = 0; k < std::min(from.noises, i + 1); ++k) row[static_cast<size_t>(i + 1 - k)] += b[k];
        rows.push_back(std::move(row));
    }
    return rows;
}

}  // namespace

bool Recurrence::starts_at(int64_t begin) const {
    // Weights below this, relative to the largest of their row, are rounding of the recurrence that was found.
    constexpr double kNothing = 1e-9;
    for (int64_t i = begin; i < evaluations(); ++i) {
        int64_t back = i - begin;
        double largest = 1.0, old = 0.0;
        for (auto [row, count] : {std::pair{of_latents(i), latents}, {of_noises(i), noises}, {of_fresh(i), fresh}}) {
            for (int64_t k = 0; k < count; ++k) {
                largest = std::max(largest, std::abs(row[k]));
                if (k > back) old = std::max(old, std::abs(row[k]));
            }
        }
        if (old > kNothing * largest) return false;
    }
    return true;
}

SchedulerTable SchedulerTable::after(int64_t begin) const {
    const int64_t first = begin * order;
    if (begin < 0 || begin >= steps || first >= evaluations()) {
        throw ParameterError(text(name, " with ", steps, " steps cannot start at step ", begin));
    }
    SchedulerTable out = *this;
    out.init_noise_sigma = 1.0;
    if (begin == 0) return out;
    if (!recurrence.starts_at(first)) throw rules::scheduler_starts_at_first_step(name);
    out.skipped = begin;
    out.timesteps.assign(timesteps.begin() + first, timesteps.end());
    out.input_scale.assign(input_scale.begin() + first, input_scale.end());
    out.recurrence.weights.assign(recurrence.weights.begin() + first * recurrence.width(), recurrence.weights.end());
    out.rows = expand(out.recurrence);
    return out;
}

Array SchedulerTable::add_noise(const Array& clean, const Array& noise,
                                const std::vector<double>& alphas_cumprod) const {
    double scale = input_scale[0], alpha = scale * scale;
    if (scale == 1.0) {
        // Schedulers that scale their input have latents clean + sigma noise, and scale by 1 / sqrt(1 + sigma^2).
        double timestep = timesteps[0];
        if (!(timestep >= 0 && timestep < static_cast<double>(alphas_cumprod.size()))) {
            throw EngineError(text("the table of ", name, " starts at timestep ", timestep), "export the engine again");
        }
        alpha = alphas_cumprod[static_cast<size_t>(timestep)];
    }
    double of_clean = std::sqrt(alpha), of_noise = std::sqrt(1 - alpha);
    Array out(clean.shape);
    for (size_t i = 0; i < out.values.size(); ++i) {
        double mixed =
            of_clean * static_cast<double>(clean.values[i]) + of_noise * static_cast<double>(noise.values[i]);
        out.values[i] = static_cast<float>(mixed / scale);
    }
    return out;
}

Scheduler::Scheduler(const SchedulerTable& table, const Shape& shape) : table_(table) {
    noises_.assign(static_cast<size_t>(table.evaluations()), Array(shape));
    sum_.resize(static_cast<size_t>(elements(shape)));
}

Array Scheduler::start(const Array& noise) const {
    Array out(noise.shape);
    for (size_t i = 0; i < out.values.size(); ++i) {
        out.values[i] = static_cast<float>(static_cast<double>(noise.values[i]) * table_.init_noise_sigma);
    }
    return out;
}

void Scheduler::model_input(int64_t i, const Array& latents, Array& out) const {
    auto scale = static_cast<float>(table_.input_scale[static_cast<size_t>(i)]);
    for (size_t j = 0; j < latents.values.size(); ++j) out.values[j] = latents.values[j] * scale;
}

void Scheduler::combine(int64_t i, const Array& start, Array& out) {
    const std::vector<double>& row = table_.rows[static_cast<size_t>(i)];
    // Terms of opposite sign cancel in a multistep scheduler; in float64 only the result is rounded.
    const double first = table_.first_weight(i);
    for (size_t k = 0; k < sum_.size(); ++k) sum_[k] = static_cast<double>(start.values[k]) * first;
    for (size_t j = 1; j < row.size(); ++j) {
        const std::vector<float>& noise = noises_[j - 1].values;
        for (size_t k = 0; k < sum_.size(); ++k) sum_[k] += static_cast<double>(noise[k]) * row[j];
    }
    for (size_t k = 0; k < sum_.size(); ++k) out.values[k] = static_cast<float>(sum_[k]);
}

std::string normalise_name(const std::string& name) {
    static const std::map<std::string, std::string> aliases{{"plms", "pndm"},
                                                            {"dpmpp2m", "dpmpp_2m"},
                                                            {"dpmsolver++", "dpmpp_2m"},
                                                            {"ddiminverse", "ddim_inverse"},
                                                            {"dpmsolvermultistep", "dpmpp_2m"},
                                                            {"eulerdiscrete", "euler"},
                                                            {"eulera", "euler_ancestral"},
                                                            {"eulerancestral", "euler_ancestral"},
                                                            {"eulerancestraldiscrete", "euler_ancestral"},
                                                            {"heundiscrete", "heun"},
                                                            {"dpmpp2msde", "dpmpp_2m_sde"},
                                                            {"dpmppsde", "dpmpp_sde"},
                                                            {"dpmsolversde", "dpmpp_sde"},
                                                            {"unipcmultistep", "unipc"}};
    std::string key;
    for (char c : name) {
        if (c == ' ' || c == '_' || c == '-' || c == '\t') continue;
        key += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    }
    const std::string suffix = "scheduler";
    if (key.size() > suffix.size() && key.compare(key.size() - suffix.size(), suffix.npos, suffix) == 0) {
        key.resize(key.size() - suffix.size());
    }
    auto found = aliases.find(key);
    if (found != aliases.end()) return found->second;
    std::string spelled = key;
    for (size_t at = spelled.find("++"); at != spelled.npos; at = spelled.find("++")) spelled.replace(at, 2, "pp");
    found = aliases.find(spelled);
    return found != aliases.end() ? found->second : spelled;
}

std::string find_scheduler(const std::string& name, const std::map<std::string, TableSpec>& tables) {
    return find_key(name, tables);
}

ParameterError unknown_scheduler(const SchedulerSection& section, const std::string& name, const std::string& choices) {
    const std::string key = find_key(name, section.left_out);
    if (key.empty()) return rules::scheduler_unknown(name, choices);
    return rules::scheduler_left_out(name, section.left_out.at(key), choices);
}

SchedulerTable load_table(const EngineDirectory& directory, const std::string& name, int64_t steps) {
    const auto& tables = directory.manifest.schedulers.tables;
    const std::string key = find_scheduler(name, tables);
    auto found = tables.find(key);
    if (found == tables.end()) {
        throw unknown_scheduler(directory.manifest.schedulers, name, joined(tables));
    }
    if (steps < 1) throw rules::steps_below_one(steps);
    const TableSpec& spec = found->second;
    auto record = spec.steps.find(steps);
    if (record == spec.steps.end()) {
        if (steps < spec.minimum_steps) {
            throw rules::steps_below_minimum(steps, key, spec.minimum_steps);
        }
        int64_t timesteps = directory.manifest.schedulers.train_timesteps;
        if (steps > timesteps) throw rules::steps_above_training(steps, key, timesteps);
        if (spec.steps.empty()) throw rules::no_steps_stored(key, steps);
        int64_t nearest = INT64_MAX;
        for (const auto& [count, evaluations] : spec.steps) {
            if (std::abs(count - steps) < std::abs(nearest - steps)) nearest = count;
        }
        throw rules::steps_not_stored(key, steps, nearest);
    }
    int64_t m = record->second, offset = 0, total = 0;
    for (const auto& [count, evaluations] : spec.steps) {
        if (count < steps) offset += spec.values(evaluations);
        total += spec.values(evaluations);
    }
    std::vector<double> values = read_values(directory, spec.file, offset, spec.values(m), total);
    SchedulerTable table;
    table.name = key;
    table.steps = steps;
    table.init_noise_sigma = values[0];
    auto at = values.begin() + 1;
    table.timesteps.assign(at, at + m);
    table.input_scale.assign(at + m, at + 2 * m);
    table.recurrence = {spec.latents, spec.noises, spec.fresh, {at + 2 * m, values.end()}};
    table.order = spec.order;
    table.rows = expand(table.recurrence);
    for (const std::vector<double>& row : table.rows) {
        if (!std::all_of(row.begin(), row.end(), [](double value) { return std::isfinite(value); })) {
            throw EngineError(
                text("the table of ", key, " with ", steps, " steps has coefficients that are not finite"),
                "export the engine again");
        }
    }
    return table;
}

std::vector<double> load_alphas_cumprod(const EngineDirectory& directory) {
    const SchedulerSection& section = directory.manifest.schedulers;
    return read_values(directory, section.alphas_cumprod, 0, section.train_timesteps, section.train_timesteps);
}

}  // namespace ebca::internal
