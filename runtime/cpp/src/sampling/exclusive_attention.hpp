// Exclusive attention: every subject of a prompt gets a place of its own. Between two evaluations the maps of the
// subjects become the bias of the next one. plugins/exclusive_attention has the method; windows.py and tables.py there
// do the same in Python, in the same order of operations, so with the same bits.
//
// Letters: m evaluations, L source layers, R rows, S contexts, G groups of tokens, h x w the grid of the maps, N = h w.
#pragma once

#include <cstdint>
#include <vector>

namespace ebca::internal {

// The tensors, in memory of the caller.
struct ExclusiveAttention {
    const int32_t* step = nullptr;      // [1], the evaluation that made `maps`; at 0 the averages begin
    const int32_t* subjects = nullptr;  // [R], a row's subjects are its first groups, so many
    const float* strengths = nullptr;   // [m,2], lambda and mu of the bias that an evaluation makes
    const int32_t* fixed = nullptr;     // [R,G], 1 for a subject whose place is given
    const float* beyond = nullptr;      // [R,G,N], how far a position is outside of that place, 0 to 1
    const int32_t* near = nullptr;      // [h,w], of `DistanceTables`
    const float* outside = nullptr;     // [h,w]
    const float* maps = nullptr;        // L times [R,G,N], `layer_stride` elements apart
    float* averages = nullptr;          // [R,G,N], kept from one evaluation to the next; not read at step 0
    float* bias = nullptr;              // [R,S,G,N], written for context 0
    int64_t layers = 0, layer_stride = 0, rows = 0, contexts = 0, groups = 0, height = 0, width = 0;

    int64_t cells() const { return height * width; }
};

// Bias of the next evaluation from the maps of evaluation step[0].
void exclude(const ExclusiveAttention& a);

// Bias of evaluation 0, before there are maps: what keeps subjects in the places that are given. away: its lambda.
// All of bias and averages is written.
void begin(const ExclusiveAttention& a, float away);

// By the distance (|dy|, |dx|) from a centre in cells, both [h,w].
struct DistanceTables {
    std::vector<int32_t> near;   // 1: no other subject has its centre there
    std::vector<float> outside;  // 1 - window
};

// window: standard deviation of a subject's place, in smaller sides of the grid. Computed in float64 and rounded once.
DistanceTables distance_tables(int64_t height, int64_t width, double window);

}  // namespace ebca::internal
