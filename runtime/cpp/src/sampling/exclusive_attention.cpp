#include "sampling/exclusive_attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace ebca::internal {
namespace {

// Smallest distance between the centres of two subjects, in sides of the grid.
constexpr double kApart = 0.25;

// What a position is worth that is taken, and one of a subject that has its place.
constexpr float kTaken = -1.0f, kPlaced = -2.0f;

// (before + 2 middle) + after, along lines of the grid; edges are repeated.
void add_neighbours(const float* from, float* to, int64_t lines, int64_t line, int64_t length, int64_t step) {
    for (int64_t n = 0; n < lines; ++n) {
        const float* in = from + n * line;
        for (int64_t i = 0; i < length; ++i) {
            float before = in[std::max<int64_t>(i - 1, 0) * step], after = in[std::min(i + 1, length - 1) * step];
            to[n * line + i * step] = (before + 2.0f * in[i * step]) + after;
        }
    }
}

void average(const ExclusiveAttention& a) {
    int64_t cells = a.cells();
    bool begins = *a.step == 0;
    std::vector<float> across(static_cast<size_t>(cells)), smoothed(across);
    for (int64_t layer = 0; layer < a.layers; ++layer) {
        for (int64_t map = 0; map < a.rows * a.groups; ++map) {
            const float* from = a.maps + layer * a.layer_stride + map * cells;
            add_neighbours(from, across.data(), a.height, a.width, a.width, 1);
            add_neighbours(across.data(), smoothed.data(), a.width, 1, a.height, a.width);
            float* to = a.averages + map * cells;
            for (int64_t i = 0; i < cells; ++i) {
                float value = smoothed[static_cast<size_t>(i)] * 0.0625f;
                to[i] = begins && layer == 0 ? value : (to[i] + value) * 0.5f;
            }
        }
    }
}

float weakness(float peak, float strongest) {
    return strongest > 0 ? (strongest - peak) / strongest : 0.0f;
}

// One row with so many subjects.
class Row {
  public:
    Row(const ExclusiveAttention& a, int64_t row, int64_t count)
        : a_(a),
          count_(count),
          averages_(a.averages + row * a.groups * a.cells()),
          beyond_(a.beyond + row * a.groups * a.cells()),
          fixed_(a.fixed + row * a.groups),
          bias_(a.bias + row * a.contexts * a.groups * a.cells()),
          away_(a.strengths[2 * *a.step]),
          boost_(a.strengths[2 * *a.step + 1]) {}

    bool acts() const { return count_ >= 2 || left() < count_; }

    void make() {
        int64_t cells = a_.cells();
        for (int64_t g = 0; g < count_; ++g) {
            peaks_.push_back(*std::max_element(averages_ + g * cells, averages_ + (g + 1) * cells));
        }
        strongest_ = *std::max_element(peaks_.begin(), peaks_.end());
        worth_.assign(averages_, averages_ + count_ * cells);
        for (int64_t g = 0; g < count_; ++g) {
            if (fixed_[g]) keep(g);
        }
        for (int64_t g = 0; g < count_; ++g) {
            if (fixed_[g]) retire(g);
        }
        for (int64_t n = left(); n > 0; --n) place();
    }

  private:
    int64_t left() const { return std::count(fixed_, fixed_ + count_, 0); }

    // In its given place.
    void keep(int64_t g) {
        int64_t cells = a_.cells();
        const float* beyond = beyond_ + g * cells;
        for (int64_t i = 0; i < cells; ++i) {
            if (beyond[i] < 0.5f) take(i);
            bias_[g * cells + i] = boost_ * weakness(peaks_[static_cast<size_t>(g)], strongest_) - away_ * beyond[i];
        }
    }

    // Where the best of the others attends most. Of equal values the first: the lowest group, then the lowest position.
    void place() {
        int64_t cells = a_.cells();
        int64_t best = std::max_element(worth_.begin(), worth_.end()) - worth_.begin();
        int64_t g = best / cells, y = best % cells / a_.width, x = best % a_.width;
        for (int64_t i = 0; i < cells; ++i) {
            int64_t distance = std::abs(i / a_.width - y) * a_.width + std::abs(i % a_.width - x);
            if (a_.near[distance]) take(i);
            bias_[g * cells + i] =
                boost_ * weakness(peaks_[static_cast<size_t>(g)], strongest_) - away_ * a_.outside[distance];
        }
        retire(g);
    }

    // No subject that is not placed has its centre there any more.
    void take(int64_t position) {
        for (int64_t g = 0; g < count_; ++g) {
            float& worth = worth_[static_cast<size_t>(g * a_.cells() + position)];
            if (worth != kPlaced) worth = kTaken;
        }
    }

    void retire(int64_t g) { std::fill_n(worth_.begin() + g * a_.cells(), a_.cells(), kPlaced); }

    const ExclusiveAttention& a_;
    int64_t count_;
    const float* averages_;
    const float* beyond_;
    const int32_t* fixed_;
    float* bias_;
    float away_, boost_;
    std::vector<float> peaks_, worth_;
    float strongest_ = 0;
};

void clear_bias(const ExclusiveAttention& a, int64_t row) {
    std::fill_n(a.bias + row * a.contexts * a.groups * a.cells(), a.groups * a.cells(), 0.0f);
}

}  // namespace

void exclude(const ExclusiveAttention& a) {
    average(a);
    for (int64_t row = 0; row < a.rows; ++row) {
        clear_bias(a, row);
        Row one(a, row, a.subjects[row]);
        if (one.acts()) one.make();
    }
}

void begin(const ExclusiveAttention& a, float away) {
    int64_t cells = a.cells();
    std::fill_n(a.averages, a.rows * a.groups * cells, 0.0f);
    std::fill_n(a.bias, a.rows * a.contexts * a.groups * cells, 0.0f);
    for (int64_t row = 0; row < a.rows; ++row) {
        for (int64_t g = 0; g < a.subjects[row]; ++g) {
            if (!a.fixed[row * a.groups + g]) continue;
            const float* beyond = a.beyond + (row * a.groups + g) * cells;
            float* bias = a.bias + (row * a.contexts * a.groups + g) * cells;
            for (int64_t i = 0; i < cells; ++i) bias[i] = -away * beyond[i];
        }
    }
}

DistanceTables distance_tables(int64_t height, int64_t width, double window) {
    auto side = static_cast<double>(std::min(height, width));
    double apart = kApart * side, deviation = window * side;
    DistanceTables out;
    for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) {
            auto squared = static_cast<double>(y * y + x * x);
            out.near.push_back(squared < apart * apart);
            out.outside.push_back(static_cast<float>(1.0 - std::exp(-squared / (2.0 * (deviation * deviation)))));
        }
    }
    return out;
}

}  // namespace ebca::internal
