// Runs exclusive attention on tensors from standard input, for test_exclusion.py. Each case: whether it begins a run
// and its lambda, then the sizes m, L, layer_stride, R, S, G, h, w (all as float64), then all tensors in their order.
// Writes averages and bias of each case.
//
//     exclusion_probe < cases
//     exclusion_probe HEIGHT WIDTH WINDOW...             tables of distances instead
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "sampling/exclusive_attention.hpp"

using namespace ebca::internal;

namespace {

template <typename T>
bool read(std::vector<T>& values, int64_t count) {
    values.resize(static_cast<size_t>(count));
    return std::fread(values.data(), sizeof(T), values.size(), stdin) == values.size();
}

template <typename T>
void write(const std::vector<T>& values) {
    std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

bool one_case() {
    std::vector<double> head;
    if (!read(head, 10)) return false;
    std::vector<int64_t> n(head.begin() + 2, head.end());
    int64_t m = n[0], rows = n[3], contexts = n[4], groups = n[5], cells = n[6] * n[7];
    std::vector<int32_t> step, subjects, fixed, near;
    std::vector<float> strengths, beyond, outside, maps, averages, bias;
    bool whole = read(step, 1) && read(subjects, rows) && read(strengths, 2 * m) && read(fixed, rows * groups) &&
                 read(beyond, rows * groups * cells) && read(near, cells) && read(outside, cells) &&
                 read(maps, n[1] * n[2]) && read(averages, rows * groups * cells) &&
                 read(bias, rows * contexts * groups * cells);
    if (!whole) return false;
    ExclusiveAttention a{step.data(),    subjects.data(), strengths.data(), fixed.data(), beyond.data(), near.data(),
                         outside.data(), maps.data(),     averages.data(),  bias.data(),  n[1],          n[2],
                         rows,           contexts,        groups,           n[6],         n[7]};
    if (head[0] != 0) {
        begin(a, static_cast<float>(head[1]));
    } else {
        exclude(a);
    }
    write(averages);
    write(bias);
    return true;
}

}  // namespace

int main(int count, char** words) {
    for (int i = 3; i < count; ++i) {
        DistanceTables made = distance_tables(std::atoll(words[1]), std::atoll(words[2]), std::atof(words[i]));
        write(made.near);
        write(made.outside);
    }
    while (count == 1 && one_case()) {
    }
}
