// The kernels between evaluations on the host, called with the parameters of a launch (plugins/sampling/kernels.py and
// plugins/exclusive_attention/kernels.py have the same in Triton).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "sampling/exclusive_attention.hpp"

namespace ebca::internal {

// Reads a launch's parameters in order.
class Parameters {
  public:
    explicit Parameters(void** parameters) : next_(parameters) {}
    template <typename T>
    T* pointer() {
        return *static_cast<T**>(*next_++);
    }
    int64_t number() { return *static_cast<int32_t*>(*next_++); }

  private:
    void** next_;
};

inline void host_begin(Parameters p) {
    auto* step = p.pointer<int32_t>();
    auto *latents = p.pointer<float>(), *input_scale = p.pointer<float>(), *timesteps = p.pointer<float>();
    auto *controls = p.pointer<float>(), *sample = p.pointer<float>(), *timestep = p.pointer<float>();
    auto *weights = p.pointer<float>(), *gamma_attn = p.pointer<float>(), *gamma_norm = p.pointer<float>();
    int64_t images = p.number(), rows = p.number(), image = p.number(), in_image = p.number();
    int64_t cells = rows * p.number(), tokens = p.number();
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < image; ++i) {
            sample[row * in_image + i] = latents[row % images * image + i] * input_scale[*step];
        }
        timestep[row] = timesteps[*step];
    }
    const float* from = controls + *step * cells * (tokens + 2);
    std::copy_n(from, cells, weights);
    std::copy_n(from + cells, cells * tokens, gamma_attn);
    std::copy_n(from + cells * (tokens + 1), cells, gamma_norm);
}

inline void host_embed(Parameters p) {
    auto *step = p.pointer<int32_t>(), *embeddings = p.pointer<int32_t>(), *base = p.pointer<int32_t>();
    auto *stride = p.pointer<int32_t>(), *time_embeddings = p.pointer<int32_t>();
    int64_t words = p.number();
    for (int64_t at = 0; at < words; ++at) time_embeddings[at] = embeddings[base[at] + *step * stride[at]];
}

inline void host_end(Parameters p) {
    auto* step = p.pointer<int32_t>();
    auto *noise = p.pointer<float>(), *start = p.pointer<float>();
    auto* coefficients = p.pointer<double>();
    auto* guidance_scale = p.pointer<float>();
    auto* carry = p.pointer<int32_t>();
    auto *contexts_out = p.pointer<float>(), *history = p.pointer<float>(), *latents = p.pointer<float>();
    auto* contexts = p.pointer<float>();
    auto* bad = p.pointer<int32_t>();
    int64_t elements = p.number(), room = p.number(), guided = p.number(), rows = p.number();
    int64_t of_row = p.number(), words = p.number(), i = *step;
    const double* weight = coefficients + i * (room + 1);
    bool fine = true;
    for (int64_t at = 0; at < elements; ++at) {
        float e = noise[at];
        if (guided) e = e + *guidance_scale * (noise[elements + at] - e);
        history[i * elements + at] = e;
        double total = static_cast<double>(start[at]) * weight[0];
        for (int64_t j = 0; j <= i; ++j) total += static_cast<double>(history[j * elements + at]) * weight[j + 1];
        latents[at] = static_cast<float>(total);
        fine = fine && std::isfinite(e) && std::isfinite(latents[at]);
    }
    for (int64_t at = 0; at < rows * of_row * words; ++at) {
        if (*carry && at / words % of_row > 0) contexts[at] = contexts_out[at];
        fine = fine && std::isfinite(contexts_out[at]);
    }
    if (!fine && *bad == 0) *bad = static_cast<int32_t>(i + 1);
}

// rows: one program each.
inline void host_exclude(Parameters p, int64_t rows) {
    ExclusiveAttention a;
    a.step = p.pointer<int32_t>();
    a.subjects = p.pointer<int32_t>();
    a.strengths = p.pointer<float>();
    a.fixed = p.pointer<int32_t>();
    a.beyond = p.pointer<float>();
    a.near = p.pointer<int32_t>();
    a.outside = p.pointer<float>();
    a.maps = p.pointer<float>();
    a.averages = p.pointer<float>();
    a.bias = p.pointer<float>();
    a.rows = rows;
    for (int64_t* size : {&a.layers, &a.layer_stride, &a.contexts, &a.groups, &a.height, &a.width}) *size = p.number();
    exclude(a);
}

// Whether `kernel` is one of them, which has run then. blocks: of the launch.
inline bool run_sampling(const std::string& kernel, int64_t blocks, void** parameters) {
    Parameters p(parameters);
    if (kernel == "ebca_begin") {
        host_begin(p);
    } else if (kernel == "ebca_embed") {
        host_embed(p);
    } else if (kernel == "ebca_end") {
        host_end(p);
    } else if (kernel == "ebca_exclude") {
        host_exclude(p, blocks);
    } else if (kernel == "ebca_advance") {
        ++*p.pointer<int32_t>();
    } else {
        return false;
    }
    return true;
}

}  // namespace ebca::internal
