// Runs the plan of a split UNet: one arena, everything bound once, each step a replay.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend.hpp"
#include "control.hpp"
#include "manifest.hpp"
#include "tensor.hpp"

namespace ebca {

// Opens a component by name.
using OpenRunner = std::function<std::shared_ptr<Runner>(const std::string&)>;

// One UNet evaluation at fixed sizes. Owns its buffers; use from one thread at a time.
class Executor {
  public:
    // sizes: batch, contexts, tokens, height, width (latent). `unet` must outlive it. std::bad_alloc where there is no
    // memory for these sizes.
    Executor(const UNetSpec& unet, OpenRunner open_runner, const Sizes& sizes);

    // Inputs, kept from step to step: sample [B,C,h,w], timestep [B], contexts [B,S,T,D], float32.
    const Tensor& sample() const { return tensors_.at("sample"); }
    const Tensor& timestep() const { return tensors_.at("timestep"); }
    const Tensor& contexts() const { return tensors_.at("contexts"); }
    // Outputs, valid until the next run: noise [B,C,h,w], contexts_out [B,S,T,D], float32.
    const Tensor& noise() const { return tensors_.at("noise"); }
    const Tensor& contexts_out() const { return tensors_.at("contexts_out"); }

    const Sizes& sizes() const { return sizes_; }

    // Copy a control into the buffers that the bound steps read.
    void set_control(const Control& control);

    // Bind a variant, so that the first run does not have to.
    void bind(Variant variant) { calls(variant); }

    // One evaluation. CancelledError as soon as `cancelled` is set; null: never.
    void run(Variant variant, const std::atomic<bool>* cancelled);

    // Run again step by step; what first writes a value that is not finite, in words, or "".
    std::string first_nonfinite(Variant variant);

  private:
    using Calls = std::vector<std::unique_ptr<Call>>;

    struct Operands {
        std::shared_ptr<Runner> runner;
        Tensors inputs, outputs;
    };

    Calls& calls(Variant variant);
    Calls& steps(Variant variant);
    Operands operands(const Step& step, Variant variant) const;
    Operands segment_operands(const Step& step, Variant variant) const;
    Tensor own(const Shape& shape);

    const UNetSpec& unet_;
    OpenRunner open_;
    Sizes sizes_;
    std::optional<Memory> arena_;
    std::vector<Memory> small_;  // what `own` made
    std::map<std::string, Tensor> tensors_;
    std::map<std::string, Tensor> control_;
    std::vector<std::pair<int64_t, int64_t>> layer_sizes_;
    std::map<std::pair<int64_t, int64_t>, Tensor> masks_;
    std::optional<Memory> zero_g_;  // what stands in for g in the variant that computes none
    std::map<Variant, Calls> bound_;
    Calls uncut_;
};

}  // namespace ebca
