#include "contract/validation.hpp"

#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "contract/checks.hpp"
#include "contract/limits.hpp"
#include "contract/model_checks.hpp"
#include "error.hpp"

namespace ebca::internal {
namespace {

const Names kInputs{"sample", "timestep", "contexts"}, kOutputs{"noise", "contexts_out"};
const Names kAddedInputs{kTextEmbeds, kTimeIds};
const Names kControls{"weights", "gamma_attn", "gamma_norm", "norm_factor", "tie"};

// A variant of the op: its inputs and outputs.
struct OpVariant {
    std::string name;
    Names inputs, outputs;
};

std::vector<OpVariant> variants() {
    const Names read = joined({"q", "k", "v"}, kControls), masked = joined(read, {"mask"});
    return {{"attention", {"q", "k", "v", "weights"}, {"out"}},
            {"update", read, {"out", "g"}},
            {"update_masked", masked, {"out", "g"}},
            {"energies", masked, {"out", "g", "energy_attn", "energy_norm"}}};
}

// Those of the ops of `UNetSpec::subject_layers`.
std::vector<OpVariant> guided_variants() {
    std::vector<OpVariant> out = variants();
    for (OpVariant& variant : out) {
        variant = {variant.name + "_guided", joined(variant.inputs, {"bias", "token_groups"}),
                   joined(variant.outputs, {"maps"})};
    }
    return out;
}

bool contains(const std::string& name, const Names& names) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

// What the host fills and reads: its arrays must fit at every size.
void check_edges(const UNetSpec& unet) {
    bool with_more = unet.inputs == joined(kInputs, kAddedInputs);
    if ((unet.inputs != kInputs && !with_more) || unet.outputs != kOutputs) {
        throw EngineError(
            "the UNet has other inputs than sample, timestep, contexts, and perhaps text_embeds, time_ids, or other "
            "outputs than noise, contexts_out");
    }
    const TensorSpec contexts = floats(shape("batch", "contexts", "tokens", unet.context_dim));
    TensorSpecs expected{{"sample", floats(shape("batch", unet.in_channels, "height", "width"))},
                         {"timestep", floats(shape("batch"))},
                         {"contexts", contexts},
                         {"noise", floats(shape("batch", unet.out_channels, "height", "width"))},
                         {"contexts_out", contexts}};
    if (with_more) {
        auto embeds = unet.tensors.find(kTextEmbeds);
        if (embeds == unet.tensors.end() || embeds->second.shape.size() != 2 ||
            !embeds->second.shape[1].factors.empty()) {
            throw EngineError(text("the UNet has no tensor '", kTextEmbeds, "' of a known width"));
        }
        expected[kTextEmbeds] = floats(shape("batch", unet.pooled_size()));
        expected[kTimeIds] = floats(shape("batch", kTimeIdCount));
    }
    check_tensors("the UNet", some(unet.tensors, joined(unet.inputs, kOutputs)), expected);
}

void check_compute(const Manifest& manifest) {
    const TensorSpecs& tensors = manifest.unet.tensors;
    auto half = std::find_if(tensors.begin(), tensors.end(),
                             [](const auto& one) { return one.second.dtype == DType::float16; });
    if ((half != tensors.end()) != (manifest.compute == "fp16")) {
        std::string which = half == tensors.end() ? "no tensor" : "'" + half->first + "'";
        throw EngineError(text("compute is '", manifest.compute, "', and ", which, " of the UNet is float16"));
    }
}

// TensorSpecs that the host fills or reads keep their layout.
void check_channels_last(const UNetSpec& unet) {
    for (const auto& [backend, names] : unet.channels_last) {
        for (const std::string& name : names) {
            auto found = unet.tensors.find(name);
            bool edge = contains(name, unet.inputs) || contains(name, unet.outputs);
            if (edge || found == unet.tensors.end() || found->second.shape.size() != 4) {
                throw EngineError(text("'", name, "' of channels_last is not an image between segments"));
            }
        }
    }
}

// The op's tensors of these names, computed in `half`, at a layer with so many positions.
TensorSpecs op_tensors(const Names& names, const LayerSpec& layer, DType half, const Dim& positions) {
    const Dim batch = parse_dim("batch"), contexts = parse_dim("contexts"), tokens = parse_dim("tokens"),
              groups = parse_dim("groups");
    Dim width = parse_dim("1");
    width.constant = layer.heads * layer.head_dim;
    width.text = std::to_string(width.constant);
    const std::vector<Dim> queries{batch, positions, width}, keys{batch, contexts, tokens, width},
        each{batch, contexts};
    const TensorSpecs all{{"q", {half, queries}},
                          {"out", {half, queries}},
                          {"k", {half, keys}},
                          {"v", {half, keys}},
                          {"g", floats(keys)},
                          {"weights", floats(each)},
                          {"gamma_norm", floats(each)},
                          {"energy_attn", floats(each)},
                          {"energy_norm", floats(each)},
                          {"gamma_attn", floats({batch, contexts, tokens})},
                          {"norm_factor", floats({})},
                          {"tie", floats({batch, contexts, contexts})},
                          {"mask", floats({batch, contexts, positions})},
                          {"bias", floats({batch, contexts, groups, positions})},
                          {"token_groups", {DType::int32, {batch, contexts, tokens}}},
                          {"maps", floats({batch, groups, positions})}};
    return some(all, names);
}

// q, k, v to out, g in the layer's sizes.
void check_layer_step(const UNetSpec& unet, const Step& step) {
    if (step.layer >= static_cast<int64_t>(unet.layers.size())) {
        throw EngineError(text("a step has layer ", step.layer, ", and there are ", unet.layers.size()));
    }
    if (step.inputs.size() != 3 || step.outputs.size() != 2) {
        throw EngineError(text("the step of layer ", step.layer, " is not q, k, v to out, g"));
    }
    const LayerSpec& layer = unet.layers[static_cast<size_t>(step.layer)];
    const Names names{"q", "k", "v", "out", "g"}, own = joined(step.inputs, step.outputs);
    TensorSpecs given;
    for (size_t i = 0; i < names.size(); ++i) given[names[i]] = unet.tensors.at(own[i]);
    const Dim positions = parse_dim(std::string_view(layer.height.text + "*" + layer.width.text));
    check_tensors(text("layer ", step.layer), given, op_tensors(names, layer, given.at("q").dtype, positions));
}

// Each step reads what was written before, and its graph has the tensors of the step.
void check_steps(const Manifest& manifest) {
    const UNetSpec& unet = manifest.unet;
    std::set<std::string> written(unet.inputs.begin(), unet.inputs.end());
    for (const std::string& name : unet.controls) {
        auto found = unet.tensors.find(name);
        if (found == unet.tensors.end() || found->second.dtype != DType::float32) {
            throw EngineError(text("'", name, "' of unet.controls is no float32 tensor of the UNet"));
        }
        written.insert(name);
    }
    std::vector<int64_t> layers;
    for (const Step& step : unet.steps) {
        for (const std::string& name : joined(step.inputs, step.outputs)) {
            if (!unet.tensors.count(name)) throw EngineError(text("a step uses the unknown tensor '", name, "'"));
        }
        for (const std::string& name : step.inputs) {
            if (!written.count(name)) throw EngineError(text("a step reads '", name, "' before it is written"));
        }
        for (const std::string& name : step.outputs) {
            if (!written.insert(name).second) {
                throw EngineError(text("a step writes '", name, "', which is there already"));
            }
        }
        if (step.is_op()) {
            layers.push_back(step.layer);
            check_layer_step(unet, step);
        } else {
            const Component& segment = need_component(manifest, step.segment, "a step");
            const std::string who = text("segment '", step.segment, "'");
            check_tensors(who, segment.inputs, some(unet.tensors, step.inputs));
            check_tensors(who, segment.outputs, some(unet.tensors, step.outputs));
        }
    }
    for (const std::string& name : unet.outputs) {
        if (!written.count(name)) throw EngineError(text("no step writes '", name, "'"));
    }
    std::sort(layers.begin(), layers.end());
    bool each_once = layers.size() == unet.layers.size();
    for (size_t i = 0; each_once && i < layers.size(); ++i) each_once = layers[i] == static_cast<int64_t>(i);
    if (!each_once) {
        throw EngineError(text("the steps do not run each of the ", unet.layers.size(), " layers once"));
    }
}

// The op of a step has these variants, with the sizes of its layer.
void check_op(const Manifest& manifest, const Step& step, const std::vector<OpVariant>& needed) {
    const UNetSpec& unet = manifest.unet;
    const Dim positions = parse_dim("positions");
    const LayerSpec& layer = unet.layers[static_cast<size_t>(step.layer)];
    const DType half = unet.tensors.at(step.inputs[0]).dtype;
    auto its = unet.ops.find(layer.op);
    for (const OpVariant& variant : needed) {
        if (its == unet.ops.end() || !its->second.count(variant.name)) {
            throw EngineError(
                text("op '", layer.op, "' of layer '", layer.name, "' has no variant '", variant.name, "'"));
        }
        const std::string& name = its->second.at(variant.name);
        const Component& component = need_component(manifest, name, text("op '", layer.op, "'"));
        const std::string who = text("op '", name, "'");
        check_tensors(who, component.inputs, op_tensors(variant.inputs, layer, half, positions));
        check_tensors(who, component.outputs, op_tensors(variant.outputs, layer, half, positions));
    }
}

void check_ops(const Manifest& manifest) {
    for (const Step& step : manifest.unet.steps) {
        if (step.is_op()) check_op(manifest, step, variants());
    }
}

// Layers of one size, in order, with the guided variants; the sources among them.
void check_subject_layers(const Manifest& manifest) {
    const UNetSpec& unet = manifest.unet;
    if (!unet.subject_layers) return;
    const auto& [biased, sources] = *unet.subject_layers;
    auto count = static_cast<int64_t>(unet.layers.size());
    for (const auto& [name, layers] : {std::pair{"biased", &biased}, {"sources", &sources}}) {
        auto descends = std::adjacent_find(layers->begin(), layers->end(), std::greater_equal<>());
        if (layers->empty() || descends != layers->end() || layers->back() >= count) {
            Shape shown(*layers);
            shown.resize(std::min<size_t>(shown.size(), 8));
            throw EngineError(
                text("subject_layers.", name, " is ", to_string(shown), " instead of ascending indices below ", count));
        }
    }
    for (int64_t index : sources) {
        if (!std::binary_search(biased.begin(), biased.end(), index)) {
            throw EngineError(text("layer ", index, " is among the sources of subject_layers, but not biased"));
        }
    }
    auto size = [&](int64_t index) {
        const LayerSpec& layer = unet.layers[static_cast<size_t>(index)];
        return std::vector<Dim>{layer.height, layer.width};
    };
    for (int64_t index : biased) {
        if (!is_same(size(index), size(biased.front()))) {
            throw EngineError(
                text("layers ", biased.front(), " and ", index, " of subject_layers have different sizes"));
        }
        auto step = std::find_if(unet.steps.begin(), unet.steps.end(),
                                 [index = index](const Step& one) { return one.layer == index; });
        check_op(manifest, *step, guided_variants());
    }
}

void check_full_unet(const Manifest& manifest, const std::string& full, const Names& controls) {
    if (full.empty()) return;
    const UNetSpec& unet = manifest.unet;
    const Component& component = need_component(manifest, full, "the UNet");
    TensorSpecs inputs = op_tensors(controls, LayerSpec(), DType::float32, Dim());
    inputs.merge(some(unet.tensors, unet.inputs));
    const std::string who = text("the full UNet '", full, "'");
    check_tensors(who, component.inputs, inputs);
    check_tensors(who, component.outputs, some(unet.tensors, unet.outputs));
}

}  // namespace

void validate(const Manifest& manifest) {
    for (const auto& [path, record] : manifest.files) check_path(path);
    for (const auto& [name, component] : manifest.components) {
        const std::string who = text("component '", name, "'");
        need_file(manifest, component.graph, who);
        if (!component.weights.empty()) need_file(manifest, component.weights, who);
        for (const auto& [backend, graph] : component.lowered) need_file(manifest, graph, who);
    }
    if (!manifest.weights.empty()) need_file(manifest, manifest.weights, "the list of weights");
    check_edges(manifest.unet);
    check_compute(manifest);
    check_channels_last(manifest.unet);
    check_steps(manifest);
    check_ops(manifest);
    check_subject_layers(manifest);
    check_full_unet(manifest, manifest.unet.full, {});
    check_full_unet(manifest, manifest.unet.full_with_updates, kControls);
    check_kind(manifest);
    check_text(manifest);
    check_vae(manifest);
    check_schedulers(manifest);
    for (const auto& [library, plans] : manifest.plans) check_plans(manifest, library, plans);
}

}  // namespace ebca::internal
