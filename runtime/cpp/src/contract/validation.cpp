#include "contract/validation.hpp"

#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "contract/limits.hpp"
#include "error.hpp"

namespace ebca::internal {
namespace {

using TensorSpecs = std::map<std::string, TensorSpec>;
using Names = std::vector<std::string>;

const Names kInputs{"sample", "timestep", "contexts"}, kOutputs{"noise", "contexts_out"};
const Names kAddedInputs{kTextEmbeds, kTimeIds};
const Names kControls{"weights", "gamma_attn", "gamma_norm", "norm_factor", "tie"};

// A variant of the op: its inputs and outputs.
struct OpVariant {
    std::string name;
    Names inputs, outputs;
};

Names joined(Names names, const Names& more) {
    names.insert(names.end(), more.begin(), more.end());
    return names;
}

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

// A shape from the texts and numbers of its dimensions.
template <class... Parts>
std::vector<Dim> shape(const Parts&... parts) {
    return {parse_dim(parts)...};
}

TensorSpec floats(std::vector<Dim> shape) {
    return {DType::float32, std::move(shape)};
}

void check_path(const std::string& path) {
    bool safe = !path.empty() && path.find_first_of(std::string_view("\\:\0", 3)) == path.npos;
    for (size_t begin = 0; safe && begin <= path.size();) {
        size_t end = std::min(path.find('/', begin), path.size());
        std::string_view part = std::string_view(path).substr(begin, end - begin);
        safe = part != ".." && part != "." && !part.empty();
        begin = end + 1;
    }
    if (!safe) {
        throw EngineError(text("the manifest names '", path, "', which is outside the engine directory"),
                          "export the engine again");
    }
}

void need_file(const Manifest& manifest, const std::string& file, const std::string& who) {
    if (!manifest.files.count(file)) throw EngineError(text(who, " needs '", file, "', which is not among the files"));
}

const Component& need_component(const Manifest& manifest, const std::string& name, const std::string& who) {
    auto found = manifest.components.find(name);
    if (found == manifest.components.end()) throw EngineError(text(who, " needs the unknown component '", name, "'"));
    return found->second;
}

std::string listed(const TensorSpecs& tensors) {
    std::string out;
    size_t count = 0;
    for (const auto& [name, tensor] : tensors) {
        if (++count > 8) return out + ", ...";
        out += (out.empty() ? "" : ", ") + name;
    }
    return out.empty() ? "none" : out;
}

std::string spelled(const TensorSpec& tensor) {
    const char* dtype = tensor.dtype == DType::float32   ? "float32"
                        : tensor.dtype == DType::float16 ? "float16"
                        : tensor.dtype == DType::int32   ? "int32"
                                                         : "int64";
    std::string out = text(dtype, " [");
    for (size_t i = 0; i < tensor.shape.size(); ++i) out += (i ? ", " : "") + tensor.shape[i].text;
    return out + "]";
}

bool equal(const TensorSpec& a, const TensorSpec& b) {
    return a.dtype == b.dtype && is_same(a.shape, b.shape);
}

// The same names, dtypes and shapes.
void check_tensors(const std::string& who, const TensorSpecs& given, const TensorSpecs& expected) {
    auto same_name = [](const auto& a, const auto& b) { return a.first == b.first; };
    if (!std::equal(given.begin(), given.end(), expected.begin(), expected.end(), same_name)) {
        throw EngineError(text(who, " has the tensors ", listed(given), " instead of ", listed(expected)));
    }
    for (const auto& [name, tensor] : expected) {
        if (!equal(given.at(name), tensor)) {
            throw EngineError(
                text("tensor '", name, "' of ", who, " is ", spelled(given.at(name)), " instead of ", spelled(tensor)));
        }
    }
}

// Those of these names that there are.
TensorSpecs some(const TensorSpecs& tensors, const Names& names) {
    TensorSpecs out;
    for (const std::string& name : names) {
        auto found = tensors.find(name);
        if (found != tensors.end()) out.insert(*found);
    }
    return out;
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

void check_kind(const Manifest& manifest) {
    const UNetSpec& unet = manifest.unet;
    const std::string& kind = manifest.kind;
    bool complete = manifest.text_encoder && manifest.vae && manifest.tokenizer;
    if (complete == (kind == "unet")) {
        throw EngineError(
            text("model.kind is '", kind, "' of a directory ", complete ? "with" : "without", " all other models"));
    }
    int64_t expected = unet.out_channels;
    if (kind == "inpainting") expected = 2 * unet.out_channels + 1;
    if (kind == "instruct-pix2pix") expected = 2 * unet.out_channels;
    if (kind != "unet" && unet.in_channels != expected) {
        throw EngineError(
            text("model.kind is '", kind, "', and unet.in_channels is ", unet.in_channels, " instead of ", expected));
    }
}

// The UNet takes what the text encoder pools, and the second encoder's padding is known.
void check_pooled(const Manifest& manifest, const TextEncoderSpec& encoder) {
    auto shown = [](int64_t width) { return width ? std::to_string(width) : "None"; };
    int64_t taken = manifest.unet.pooled_size();
    if (encoder.pooled_size != taken) {
        throw EngineError(text("text_encoder.pooled_size is ", shown(encoder.pooled_size), ", and the UNet's ",
                               kTextEmbeds, " are ", shown(taken), " wide"));
    }
    int64_t first = encoder.first_hidden_size;
    if ((encoder.pooled_size == 0) != (first == 0) || first >= encoder.hidden_size) {
        throw EngineError(
            text("text_encoder.first_hidden_size is ", shown(first), ", beside ", encoder.hidden_size, " in all"));
    }
    if (!manifest.tokenizer) return;
    bool padded = manifest.tokenizer->pad_2.has_value();
    if (padded == (encoder.pooled_size > 0)) return;
    throw EngineError(padded ? "tokenizer.info has pad_token_2, and there is one text encoder"
                             : "there are two text encoders, and tokenizer.info has no pad_token_2");
}

void check_text(const Manifest& manifest) {
    const auto& encoder = manifest.text_encoder;
    const auto& tokenizer = manifest.tokenizer;
    if (tokenizer) need_file(manifest, tokenizer->file, "the tokenizer");
    if (!encoder) return;
    const TensorSpec ids{DType::int64, shape("batch", encoder->max_length)};
    TensorSpecs inputs{{"input_ids", ids}},
        outputs{{"hidden_states", floats(shape("batch", encoder->max_length, encoder->hidden_size))}};
    if (encoder->pooled_size) {
        inputs["input_ids_2"] = ids;
        outputs["pooled"] = floats(shape("batch", encoder->pooled_size));
    }
    auto check = [&](const std::string& name, const std::string& who) {
        const Component& component = need_component(manifest, name, who);
        check_tensors(who, component.inputs, inputs);
        check_tensors(who, component.outputs, outputs);
    };
    check(encoder->component, "the text encoder");
    inputs["skip"] = {DType::int64, shape(1)};
    if (!encoder->layers_component.empty()) check(encoder->layers_component, "the text encoder's layers");
    check_pooled(manifest, *encoder);
    if (encoder->hidden_size != manifest.unet.context_dim) {
        throw EngineError(text("text_encoder.hidden_size is ", encoder->hidden_size, ", and unet.context_dim is ",
                               manifest.unet.context_dim));
    }
    if (!tokenizer) throw EngineError("there is a text encoder, but no tokenizer");
    if (tokenizer->model_max_length != encoder->max_length) {
        throw EngineError(text("the tokenizer makes ", tokenizer->model_max_length,
                               " tokens, and text_encoder.max_length is ", encoder->max_length));
    }
}

void check_vae(const Manifest& manifest) {
    if (!manifest.vae) return;
    const VaeSpec& vae = *manifest.vae;
    if (vae.latent_channels != manifest.unet.out_channels) {
        throw EngineError(text("vae.latent_channels is ", vae.latent_channels, ", and unet.out_channels is ",
                               manifest.unet.out_channels));
    }
    auto times = [&](const char* side) { return parse_dim(std::string_view(text(vae.downscale, "*", side))); };
    const TensorSpec latents = floats(shape("batch", vae.latent_channels, "height", "width"));
    const TensorSpec image = floats({parse_dim("batch"), parse_dim(int64_t{3}), times("height"), times("width")});
    const Component& decoder = need_component(manifest, vae.decoder, "the VAE");
    check_tensors("the VAE's decoder", decoder.inputs, {{"latents", latents}});
    check_tensors("the VAE's decoder", decoder.outputs, {{"image", image}});
    const Component& encoder = need_component(manifest, vae.encoder, "the VAE");
    check_tensors("the VAE's encoder", encoder.inputs, {{"image", image}});
    check_tensors("the VAE's encoder", encoder.outputs, {{"mean", latents}, {"std", latents}});
    if (vae.preview.empty()) return;
    const Component& preview = need_component(manifest, vae.preview, "the VAE");
    check_tensors("the decoder of previews", preview.inputs, {{"latents", latents}});
    check_tensors("the decoder of previews", preview.outputs, {{"image", image}});
}

void check_schedulers(const Manifest& manifest) {
    const SchedulerSection& section = manifest.schedulers;
    for (const auto& [role, name] :
         {std::pair{"default", section.standard}, {"image_to_image", section.image_to_image}}) {
        if (!name.empty() && !section.tables.count(name)) {
            throw EngineError(text("schedulers.", role, " is '", name, "', which has no table"));
        }
    }
    need_file(manifest, section.alphas_cumprod, "schedulers.alphas_cumprod");
    int64_t bytes = manifest.files.at(section.alphas_cumprod).size;
    if (bytes != 8 * section.train_timesteps) {
        throw EngineError(text("num_train_timesteps is ", section.train_timesteps, ", and '", section.alphas_cumprod,
                               "' has ", bytes, " bytes instead of 8 each"));
    }
    for (const auto& [name, table] : section.tables) {
        need_file(manifest, table.file, "the scheduler " + name);
        int64_t needed = 0, size = manifest.files.at(table.file).size;
        for (const auto& [steps, evaluations] : table.steps) needed += 8 * table.values(evaluations);
        // Another size means that records lie elsewhere than the manifest says.
        if (size != needed) {
            throw EngineError(
                text("the tables of ", name, " have ", needed, " bytes, and '", table.file, "' has ", size));
        }
    }
}

// A tensor in which every dimension that is the same for all sizes is a number.
bool is_resolved(const TensorSpec& mine, const TensorSpec& its, const Plan& plan) {
    std::vector<Dim> expected;
    for (const Dim& dim : its.shape) {
        Sizes fixed;
        for (const Dim::Factor& factor : dim.factors) {
            auto found = plan.sizes.find(factor.name);
            if (found == plan.sizes.end()) return false;
            if (found->second.front() == found->second.back()) fixed[factor.name] = found->second.front();
        }
        bool all = std::all_of(dim.factors.begin(), dim.factors.end(),
                               [&](const Dim::Factor& factor) { return fixed.count(factor.name) > 0; });
        expected.push_back(dim);
        if (all) {
            expected.back() = Dim();
            expected.back().constant = evaluate(dim, fixed);
        }
    }
    return mine.dtype == its.dtype && is_same(mine.shape, expected);
}

void check_plans(const Manifest& manifest, const std::string& library, const LibraryPlans& plans) {
    for (const auto& [name, entries] : plans) {
        const Component& component = need_component(manifest, name, "plans." + library);
        for (const Plan& plan : entries) {
            need_file(manifest, plan.file, "plans." + library);
            for (auto [mine, its] : {std::pair{&plan.inputs, &component.inputs}, {&plan.outputs, &component.outputs}}) {
                bool same =
                    std::equal(mine->begin(), mine->end(), its->begin(), its->end(), [&](const auto& a, const auto& b) {
                        return a.first == b.first && is_resolved(a.second, b.second, plan);
                    });
                if (!same) {
                    throw EngineError(
                        text("the plan '", plan.file, "' and component '", name, "' have different tensors"));
                }
            }
        }
    }
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
