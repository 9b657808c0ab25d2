#include "executor.hpp"

#include <algorithm>
#include <cstring>

#include "arena.hpp"
#include "error.hpp"

namespace ebca {
namespace {

void copy(const Array& from, const Tensor& to) {
    if (static_cast<int64_t>(from.values.size()) != to.count()) {
        throw ParameterError(text("an array of shape ", to_string(from.shape), " does not fit ", to_string(to.shape)));
    }
    std::memcpy(to.data, from.values.data(), from.values.size() * sizeof(float));
}

}  // namespace

Executor::Executor(const UNetSpec& unet, OpenRunner open_runner, const Sizes& sizes)
    : unet_(unet), open_(std::move(open_runner)), sizes_(sizes) {
    std::map<std::string, Shape> shapes;
    std::map<std::string, int64_t> bytes;
    for (const auto& [name, spec] : unet.tensors) {
        shapes[name] = evaluate(spec.shape, sizes);
        bytes[name] = byte_size(shapes[name], spec.dtype);
    }
    std::vector<std::string> keep = unet.inputs;
    keep.insert(keep.end(), unet.outputs.begin(), unet.outputs.end());
    Layout layout = lay_out(lifetimes(unet.plan, bytes, keep));
    arena_.emplace(layout.bytes);
    for (const auto& [name, offset] : layout.offsets) {
        tensors_[name] = arena_->view(offset, shapes.at(name), unet.tensors.at(name).dtype);
    }
    int64_t batch = sizes.at("batch"), contexts = sizes.at("contexts"), tokens = sizes.at("tokens");
    control_["weights"] = own({batch, contexts});
    control_["gamma_attn"] = own({batch, contexts, tokens});
    control_["gamma_norm"] = own({batch, contexts});
    control_["norm_factor"] = own({});
    control_["tie"] = own({batch, contexts, contexts});
    int64_t widest = 0;
    for (const LayerSpec& layer : unet.layers) {
        std::pair size{evaluate(layer.height, sizes), evaluate(layer.width, sizes)};
        layer_sizes_.push_back(size);
        if (!masks_.count(size)) masks_[size] = own({batch, contexts, elements({size.first, size.second})});
        widest = std::max(widest, elements({layer.heads, layer.head_dim}));
    }
    zero_g_.emplace(byte_size({batch, contexts, tokens, widest}, DType::float32));
}

Tensor Executor::own(const Shape& shape) {
    small_.emplace_back(byte_size(shape, DType::float32));
    return small_.back().view(0, shape, DType::float32);
}

void Executor::set_control(const Control& control) {
    copy(control.weights, control_["weights"]);
    copy(control.gamma_attn, control_["gamma_attn"]);
    copy(control.gamma_norm, control_["gamma_norm"]);
    copy(control.tie, control_["tie"]);
    *control_["norm_factor"].floats() = control.norm_factor;
    for (auto& [size, mask] : masks_) {
        if (control.masks) {
            copy(control.masks->at(size), mask);
        } else {
            std::fill_n(mask.floats(), mask.count(), 1.0f);
        }
    }
}

void Executor::run(Variant variant, const std::atomic<bool>* cancelled) {
    for (const std::unique_ptr<Call>& call : calls(variant)) {
        if (cancelled && cancelled->load(std::memory_order_relaxed)) throw CancelledError("cancelled in an evaluation");
        call->run();
    }
}

// The bound steps, or the uncut UNet where there is one and it computes the same.
Executor::Calls& Executor::calls(Variant variant) {
    if (variant != Variant::attention || unet_.vanilla.empty() || sizes_.at("contexts") > 1) return steps(variant);
    if (uncut_.empty()) {
        Tensors inputs, outputs;
        for (const std::string& name : unet_.inputs) inputs.emplace_back(name, tensors_.at(name));
        for (const std::string& name : unet_.outputs) outputs.emplace_back(name, tensors_.at(name));
        uncut_.push_back(open_(unet_.vanilla)->bind(inputs, outputs));
    }
    return uncut_;
}

Executor::Calls& Executor::steps(Variant variant) {
    auto found = bound_.find(variant);
    if (found != bound_.end()) return found->second;
    Calls calls;
    for (const Step& step : unet_.plan) {
        Operands work = operands(step, variant);
        calls.push_back(work.runner->bind(work.inputs, work.outputs));
    }
    return bound_.emplace(variant, std::move(calls)).first->second;
}

std::string Executor::first_nonfinite(Variant variant) {
    std::string segment;
    Calls& calls = steps(variant);
    for (size_t i = 0; i < calls.size(); ++i) {
        const Step& step = unet_.plan[i];
        calls[i]->run();
        if (!step.is_op()) segment = step.segment;
        size_t written = step.is_op() && variant == Variant::attention ? 1 : step.outputs.size();
        bool finite = std::all_of(step.outputs.begin(), step.outputs.begin() + static_cast<std::ptrdiff_t>(written),
                                  [&](const std::string& name) { return all_finite(tensors_.at(name)); });
        if (finite) continue;
        if (!step.is_op()) return segment;
        return text("the attention of layer ", step.layer, " (", unet_.layers[step.layer].name, ") after ", segment);
    }
    return "";
}

// What runs a step, its inputs and its outputs.
Executor::Operands Executor::operands(const Step& step, Variant variant) const {
    if (!step.is_op()) return segment_operands(step, variant);
    const LayerSpec& layer = unet_.layers[step.layer];
    Operands work;
    work.runner = open_(unet_.ops.at(layer.op).at(to_string(variant)));
    const char* const names[] = {"q", "k", "v"};
    for (size_t i = 0; i < 3; ++i) work.inputs.emplace_back(names[i], tensors_.at(step.inputs[i]));
    work.inputs.emplace_back("weights", control_.at("weights"));
    work.outputs.emplace_back("out", tensors_.at(step.outputs[0]));
    if (variant == Variant::attention) return work;
    for (const char* name : {"gamma_attn", "gamma_norm", "norm_factor", "tie"}) {
        work.inputs.emplace_back(name, control_.at(name));
    }
    if (variant == Variant::update_masked) {
        work.inputs.emplace_back("mask", masks_.at(layer_sizes_[step.layer]));
    }
    work.outputs.emplace_back("g", tensors_.at(step.outputs[1]));
    return work;
}

Executor::Operands Executor::segment_operands(const Step& step, Variant variant) const {
    Operands work;
    work.runner = open_(step.segment);
    for (const std::string& name : step.inputs) {
        Tensor tensor = tensors_.at(name);
        bool is_g = std::any_of(unet_.plan.begin(), unet_.plan.end(),
                                [&](const Step& op) { return op.is_op() && op.outputs[1] == name; });
        if (variant == Variant::attention && is_g) tensor = zero_g_->view(0, tensor.shape, DType::float32);
        work.inputs.emplace_back(name, tensor);
    }
    for (const std::string& name : step.outputs) work.outputs.emplace_back(name, tensors_.at(name));
    return work;
}

}  // namespace ebca
