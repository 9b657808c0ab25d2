// Writes scheduler tables of an engine directory as float64 to standard output, for test_tables.py.
//
//     table_probe ENGINE NAME BEGIN STEPS...
//
// Of each table from evaluation BEGIN on: init_noise_sigma, timesteps, input scales, and all rows.

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "contract/directory.hpp"
#include "sampling/schedulers.hpp"

using namespace ebca::internal;

namespace {

void write(const std::vector<double>& values) {
    std::fwrite(values.data(), sizeof(double), values.size(), stdout);
}

}  // namespace

int main(int count, char** words) {
    try {
        EngineDirectory directory = open_directory(words[1]);
        for (int i = 4; i < count; ++i) {
            SchedulerTable table = load_table(directory, words[2], std::stoll(words[i]));
            if (std::stoll(words[3]) > 0) table = table.after(std::stoll(words[3]));
            write({table.init_noise_sigma});
            write(table.timesteps);
            write(table.input_scale);
            for (const std::vector<double>& row : table.rows) write(row);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
