#include "execution/executor.hpp"

#include <algorithm>
#include <cstring>

#include "error.hpp"
#include "execution/arena.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

void copy(const Array& from, const Tensor& to) {
    if (static_cast<int64_t>(from.values.size()) != to.count()) {
        throw ParameterError(text("an array of shape ", to_string(from.shape), " does not fit ", to_string(to.shape)));
    }
    std::memcpy(to.data, from.values.data(), from.values.size() * sizeof(float));
}

// Whether a variant reads the masks.
bool masked(Variant variant) {
    return plain(variant) == Variant::update_masked || plain(variant) == Variant::energies;
}

}  // namespace

Executor::Executor(const UNetSpec& unet, OpenRunner open_runner, const Sizes& sizes, std::shared_ptr<Device> device,
                   const std::vector<std::string>& channels_last, int64_t groups)
    : unet_(unet), open_(std::move(open_runner)), sizes_(sizes), device_(std::move(device)) {
    std::map<std::string, Shape> shapes;
    std::map<std::string, int64_t> bytes;
    for (const auto& [name, spec] : unet.tensors) {
        shapes[name] = evaluate(spec.shape, sizes);
        bytes[name] = byte_size(shapes[name], spec.dtype);
    }
    for (const std::string& name : channels_last) {
        Shape& shape = shapes.at(name);
        std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
    }
    std::vector<std::string> keep = unet.inputs;
    keep.insert(keep.end(), unet.outputs.begin(), unet.outputs.end());
    std::map<std::string, Lifetime> alive = lifetimes(unet.steps, bytes, keep);
    std::vector<Block::Spec> embeddings;
    if (const Step* step = unet.time_step()) {
        for (const std::string& name : step->outputs) {
            embeddings.push_back({name, shapes.at(name), unet.tensors.at(name).dtype});
            alive.erase(name);
        }
    }
    int64_t zero_bytes = 0;
    for (const std::string& name : unet.controls) {
        zero_bytes = std::max(zero_bytes, bytes.at(name));
        alive.erase(name);
    }
    if (zero_bytes) zero_controls_.emplace(device_->allocate(zero_bytes));
    for (const std::string& name : unet.controls) {
        tensors_[name] = zero_controls_->view(0, shapes.at(name), DType::float32);
    }
    Layout layout = lay_out(alive);
    arena_.emplace(device_->allocate(layout.bytes));
    for (const auto& [name, offset] : layout.offsets) {
        tensors_[name] = arena_->view(offset, shapes.at(name), unet.tensors.at(name).dtype);
    }
    time_embeddings_.emplace(*device_, embeddings);
    tensors_.insert(time_embeddings_->tensors().begin(), time_embeddings_->tensors().end());
    for (const std::string& name : keep) seen_[name] = device_->share(tensors_.at(name));
    int64_t batch = sizes.at("batch"), contexts = sizes.at("contexts"), tokens = sizes.at("tokens");
    control_.emplace("weights", own({batch, contexts}));
    control_.emplace("gamma_attn", own({batch, contexts, tokens}));
    control_.emplace("gamma_norm", own({batch, contexts}));
    control_.emplace("norm_factor", own({}));
    control_.emplace("tie", own({batch, contexts, contexts}));
    int64_t widest = 0;
    for (const LayerSpec& layer : unet.layers) {
        std::pair size{evaluate(layer.height, sizes), evaluate(layer.width, sizes)};
        layer_sizes_.push_back(size);
        if (!masks_.count(size)) {
            masks_.emplace(size, own({batch, contexts, elements({size.first, size.second})}));
        }
        widest = std::max(widest, elements({layer.heads, layer.head_dim}));
    }
    zero_g_.emplace(device_->allocate(byte_size({batch, contexts, tokens, widest}, DType::float32)));
    if (groups) guided_.emplace(unet, sizes, groups, *device_);
}

void Executor::set_conditions(const Conditions& conditions) {
    copy(conditions.contexts, contexts());
    if (!unet_.pooled_size()) return;
    copy(conditions.text_embeds, host(kTextEmbeds));
    copy(conditions.time_ids, host(kTimeIds));
}

void Executor::set_control(const Control& control) {
    auto set = [&](const char* name, const Array& values) { copy(values, control_.at(name).shared().host); };
    set("weights", control.weights);
    set("gamma_attn", control.gamma_attn);
    set("gamma_norm", control.gamma_norm);
    set("tie", control.tie);
    *control_.at("norm_factor").shared().host.floats() = control.norm_factor;
    for (const auto& [size, memory] : masks_) {
        const Tensor& mask = memory.shared().host;
        if (control.masks) {
            copy(control.masks->at(size), mask);
        } else {
            std::fill_n(mask.floats(), mask.count(), 1.0f);
        }
    }
}

void Executor::run(Variant variant, Cancellation* cancellation, bool embedded) {
    recorded(variant, embedded).run(cancellation);
}

Replay& Executor::recorded(Variant variant, bool embedded) {
    std::unique_ptr<Replay>& found = recorded_[{variant, embedded}];
    if (!found) found = device_->record(calls(variant, embedded), reads(variant), writes(variant));
    return *found;
}

Tensors Executor::arrays() const {
    Tensors out;
    for (const auto& [name, shared] : seen_) out.emplace_back(name, shared.array);
    for (const auto& [name, memory] : control_) out.emplace_back(name, memory.shared().array);
    return out;
}

std::vector<Shared> Executor::inputs() const {
    std::vector<Shared> out;
    for (const std::string& name : unet_.inputs) out.push_back(seen_.at(name));
    return out;
}

std::vector<Shared> Executor::outputs() const {
    std::vector<Shared> out;
    for (const std::string& name : unet_.outputs) out.push_back(seen_.at(name));
    return out;
}

// Inputs that the host wrote and the variant reads.
std::vector<Shared> Executor::reads(Variant variant) const {
    std::vector<Shared> out = inputs();
    for (const auto& [name, memory] : control_) {
        if (plain(variant) != Variant::attention || name == "weights") out.push_back(memory.shared());
    }
    for (const auto& [size, memory] : masks_) {
        if (masked(variant)) out.push_back(memory.shared());
    }
    if (guided_ && is_guided(variant)) {
        for (const Shared& one : guided_->reads()) out.push_back(one);
    }
    return out;
}

// What the variant writes and the host reads.
std::vector<Shared> Executor::writes(Variant variant) const {
    std::vector<Shared> out = outputs();
    if (guided_ && is_guided(variant)) {
        for (const Shared& one : guided_->writes()) out.push_back(one);
    }
    if (plain(variant) == Variant::energies) {
        for (const auto& terms : energies_) out.insert(out.end(), {terms[0].shared(), terms[1].shared()});
    }
    return out;
}

bool Executor::runs_steps(Variant variant) const {
    return variant != Variant::attention || unet_.full.empty() || sizes_.at("contexts") > 1;
}

std::vector<Call*> Executor::calls(Variant variant, bool embedded) {
    bool whole = !runs_steps(variant);
    std::vector<Call*> out;
    for (const std::unique_ptr<Call>& call : whole ? full_unet() : steps(variant)) out.push_back(call.get());
    if (!whole && embedded && unet_.time_step()) out.erase(out.begin());
    return out;
}

Executor::Calls& Executor::full_unet() {
    if (full_unet_.empty()) {
        auto held = device_->ready();
        Tensors inputs, outputs;
        for (const std::string& name : unet_.inputs) inputs.emplace_back(name, tensors_.at(name));
        for (const std::string& name : unet_.outputs) outputs.emplace_back(name, tensors_.at(name));
        full_unet_.push_back(open_(unet_.full, sizes_)->bind(inputs, outputs));
    }
    return full_unet_;
}

Executor::Calls& Executor::steps(Variant variant) {
    auto found = bound_.find(variant);
    if (found != bound_.end()) return found->second;
    auto held = device_->ready();
    if (plain(variant) == Variant::energies && energies_.empty()) {
        Shape shape{sizes_.at("batch"), sizes_.at("contexts")};
        for (size_t i = 0; i < unet_.layers.size(); ++i) energies_.push_back({own(shape), own(shape)});
    }
    std::vector<Operands> plan;
    int64_t need = 0;
    for (const Step& step : unet_.steps) {
        const Operands& work = plan.emplace_back(operands(step, variant));
        if (work.kernel) need = std::max(need, work.kernel->scratch_bytes(work.inputs));
    }
    // One block for all: they run one after the other.
    std::optional<Memory> workspace;
    if (need) workspace = device_->allocate(need);
    void* scratch = need ? workspace->view(0, {}, DType::float32).data : nullptr;
    Calls calls;
    for (const Operands& work : plan) {
        calls.push_back(work.kernel ? work.kernel->bind(work.inputs, work.outputs, scratch)
                                    : work.runner->bind(work.inputs, work.outputs));
    }
    if (workspace) workspaces_.push_back(*std::move(workspace));
    // Components were opened for it.
    platform::trim_heap();
    return bound_.emplace(variant, std::move(calls)).first->second;
}

void Executor::run_probed(Variant variant, Cancellation* cancellation, const Probe& probe) {
    Calls& calls = steps(variant);
    device_->upload(reads(variant));
    for (size_t i = 0; i < calls.size(); ++i) {
        if (cancellation) cancellation->check("an evaluation");
        const Step& step = unet_.steps[i];
        device_->run(*calls[i], cancellation);
        if (!step.is_op()) continue;
        const Shared q = device_->share(tensors_.at(step.inputs[0])), k = device_->share(tensors_.at(step.inputs[1]));
        device_->download({q, k});
        probe(step.layer, q.host, k.host);
    }
    device_->download(writes(variant));
}

Executor::Energies Executor::energies() const {
    Energies out;
    for (size_t term = 0; term < out.size(); ++term) {
        out[term] = Array({static_cast<int64_t>(energies_.size()), sizes_.at("batch"), sizes_.at("contexts")});
        float* to = out[term].values.data();
        for (const auto& terms : energies_) {
            to = std::copy_n(terms[term].shared().host.floats(), out[term].stride(), to);
        }
    }
    return out;
}

std::string Executor::first_nonfinite(Variant variant) {
    std::string segment;
    Calls& calls = steps(variant);
    device_->upload(reads(variant));
    for (size_t i = 0; i < calls.size(); ++i) {
        const Step& step = unet_.steps[i];
        device_->run(*calls[i], nullptr);
        if (!step.is_op()) segment = step.segment;
        size_t written = step.is_op() && plain(variant) == Variant::attention ? 1 : step.outputs.size();
        std::vector<Shared> made;
        for (size_t n = 0; n < written; ++n) made.push_back(device_->share(tensors_.at(step.outputs[n])));
        device_->download(made);
        bool finite = std::all_of(made.begin(), made.end(), [](const Shared& one) { return all_finite(one.host); });
        if (finite) continue;
        if (!step.is_op()) return segment;
        return text("the attention of layer ", step.layer, " (", unet_.layers[step.layer].name, ") after ", segment);
    }
    return "";
}

// The runner of a step, its inputs and its outputs.
Executor::Operands Executor::operands(const Step& step, Variant variant) const {
    if (!step.is_op()) return segment_operands(step, variant);
    const LayerSpec& layer = unet_.layers[step.layer];
    bool with_guidance = guided_ && is_guided(variant) && guided_->is_biased(step.layer);
    if (!with_guidance) variant = plain(variant);
    Operands work;
    work.kernel = device_->op(variant, layer, tensors_.at(step.inputs[0]).dtype);
    if (!work.kernel) {
        Sizes sizes = sizes_;
        sizes["positions"] = tensors_.at(step.inputs[0]).shape.at(1);
        if (with_guidance) sizes["groups"] = guided_->groups();
        work.runner = open_(unet_.ops.at(layer.op).at(to_string(variant)), sizes);
    }
    const char* const names[] = {"q", "k", "v"};
    for (size_t i = 0; i < 3; ++i) work.inputs.emplace_back(names[i], tensors_.at(step.inputs[i]));
    work.inputs.emplace_back("weights", control_.at("weights").shared().array);
    work.outputs.emplace_back("out", tensors_.at(step.outputs[0]));
    if (with_guidance) guided_->add(step.layer, work.inputs, work.outputs);
    if (plain(variant) == Variant::attention) return work;
    for (const char* name : {"gamma_attn", "gamma_norm", "norm_factor", "tie"}) {
        work.inputs.emplace_back(name, control_.at(name).shared().array);
    }
    if (masked(variant)) work.inputs.emplace_back("mask", masks_.at(layer_sizes_[step.layer]).shared().array);
    work.outputs.emplace_back("g", tensors_.at(step.outputs[1]));
    if (plain(variant) == Variant::energies) {
        const auto& [attention, norm] = energies_.at(static_cast<size_t>(step.layer));
        work.outputs.emplace_back("energy_attn", attention.shared().array);
        work.outputs.emplace_back("energy_norm", norm.shared().array);
    }
    return work;
}

Executor::Operands Executor::segment_operands(const Step& step, Variant variant) const {
    Operands work;
    work.runner = open_(step.segment, sizes_);
    for (const std::string& name : step.inputs) {
        Tensor tensor = tensors_.at(name);
        bool is_g = std::any_of(unet_.steps.begin(), unet_.steps.end(),
                                [&](const Step& op) { return op.is_op() && op.outputs[1] == name; });
        if (plain(variant) == Variant::attention && is_g) tensor = zero_g_->view(0, tensor.shape, DType::float32);
        work.inputs.emplace_back(name, tensor);
    }
    for (const std::string& name : step.outputs) work.outputs.emplace_back(name, tensors_.at(name));
    return work;
}

}  // namespace ebca::internal
