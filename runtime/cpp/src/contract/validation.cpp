#include "contract/validation.hpp"

#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"

namespace ebca {
namespace {

const char* const kVariants[] = {"attention", "update", "update_masked"};

void check_path(const std::string& path) {
    bool safe = !path.empty() && path.front() != '/' && path.find_first_of(std::string_view("\\:\0", 3)) == path.npos;
    for (size_t begin = 0; safe && begin <= path.size();) {
        size_t end = std::min(path.find('/', begin), path.size());
        std::string_view part = std::string_view(path).substr(begin, end - begin);
        safe = part != ".." && part != "." && !part.empty();
        begin = end + 1;
    }
    if (!safe) {
        throw EngineError(text("the manifest names '", path, "', which is outside the engine directory"),
                          "refusing to read it");
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

bool same_names(const std::map<std::string, TensorSpec>& tensors, const std::vector<std::string>& names) {
    std::set<std::string> given(names.begin(), names.end());
    return given.size() == tensors.size() &&
           std::all_of(given.begin(), given.end(), [&](const auto& name) { return tensors.count(name) > 0; });
}

void need_tensor(const std::map<std::string, TensorSpec>& tensors, const char* name, const std::string& who) {
    if (!tensors.count(name)) throw EngineError(text(who, " has no tensor '", name, "'"));
}

// The host's arrays must fit the tensors they are bound to at every size. Dimensions are compared by their text, since
// width_6 is 2 at some sizes, as a batch with guidance is.
void validate_edges(const UNetSpec& unet) {
    const std::vector<std::string> inputs{"sample", "timestep", "contexts"}, outputs{"noise", "contexts_out"};
    if (unet.inputs != inputs || unet.outputs != outputs) {
        throw EngineError(
            "the UNet has other inputs than sample, timestep, contexts, or other outputs than noise, "
            "contexts_out");
    }
    const Dim batch = parse_dim("batch"), height = parse_dim("height"), width = parse_dim("width");
    const std::vector<Dim> contexts{batch, parse_dim("contexts"), parse_dim("tokens"), parse_dim(unet.context_dim)};
    const std::map<std::string, std::vector<Dim>> shapes{
        {"sample", {batch, parse_dim(unet.in_channels), height, width}},
        {"timestep", {batch}},
        {"contexts", contexts},
        {"noise", {batch, parse_dim(unet.out_channels), height, width}},
        {"contexts_out", contexts}};
    for (const auto& [name, shape] : shapes) {
        auto found = unet.tensors.find(name);
        if (found == unet.tensors.end() || found->second.dtype != DType::float32 ||
            !std::equal(shape.begin(), shape.end(), found->second.shape.begin(), found->second.shape.end(), is_same)) {
            throw EngineError(text("tensor '", name, "' of the steps is missing or has another dtype or shape"));
        }
    }
}

// Tensors that the host fills or reads keep their layout.
void validate_channels_last(const UNetSpec& unet) {
    std::set<std::string> edges(unet.inputs.begin(), unet.inputs.end());
    edges.insert(unet.outputs.begin(), unet.outputs.end());
    for (const auto& [backend, names] : unet.channels_last) {
        for (const std::string& name : names) {
            auto found = unet.tensors.find(name);
            if (found == unet.tensors.end() || edges.count(name) || found->second.shape.size() != 4) {
                throw EngineError(text("'", name, "' of channels_last is not an image between segments"));
            }
        }
    }
}

void validate_plan(const Manifest& manifest) {
    const UNetSpec& unet = manifest.unet;
    std::set<std::string> written(unet.inputs.begin(), unet.inputs.end());
    for (const Step& step : unet.steps) {
        for (const auto* names : {&step.inputs, &step.outputs}) {
            for (const std::string& name : *names) {
                if (!unet.tensors.count(name)) throw EngineError(text("a step uses the unknown tensor '", name, "'"));
            }
        }
        for (const std::string& name : step.inputs) {
            if (!written.count(name)) throw EngineError(text("a step reads '", name, "' before it is written"));
        }
        written.insert(step.outputs.begin(), step.outputs.end());
        if (!step.is_op()) {
            const Component& segment = need_component(manifest, step.segment, "a step");
            if (!same_names(segment.inputs, step.inputs) || !same_names(segment.outputs, step.outputs)) {
                throw EngineError(text("the step and segment '", step.segment, "' name different tensors"));
            }
        } else if (step.layer >= static_cast<int64_t>(unet.layers.size())) {
            throw EngineError(text("a step has the layer ", step.layer));
        } else if (step.inputs.size() != 3 || step.outputs.size() != 2) {
            throw EngineError(text("the step of layer ", step.layer, " is not q, k, v to out, g"));
        }
    }
    for (const std::string& name : unet.outputs) {
        if (!written.count(name)) throw EngineError(text("no step writes '", name, "'"));
    }
}

}  // namespace

void validate(const Manifest& manifest) {
    if (manifest.compute != "fp32" && manifest.compute != "fp16") {
        throw EngineError(text("compute is '", manifest.compute, "'"));
    }
    for (const auto& [path, record] : manifest.files) check_path(path);
    for (const auto& [name, component] : manifest.components) {
        // It becomes the name of a file in the cache.
        if (name.empty() || name.front() == '.' || name.find_first_of(std::string_view("/\\\0", 3)) != name.npos) {
            throw EngineError(text("'", name, "' cannot be a component's name"));
        }
        const std::string who = text("component '", name, "'");
        need_file(manifest, component.graph, who);
        if (!component.weights.empty()) need_file(manifest, component.weights, who);
        for (const auto& [backend, graph] : component.lowered) need_file(manifest, graph, who);
    }
    validate_edges(manifest.unet);
    validate_channels_last(manifest.unet);
    validate_plan(manifest);
    for (const LayerSpec& layer : manifest.unet.layers) {
        auto variants = manifest.unet.ops.find(layer.op);
        for (const char* variant : kVariants) {
            if (variants == manifest.unet.ops.end() || !variants->second.count(variant)) {
                throw EngineError(
                    text("op '", layer.op, "' of layer '", layer.name, "' has no variant '", variant, "'"));
            }
            need_component(manifest, variants->second.at(variant), text("op '", layer.op, "'"));
        }
    }
    if (!manifest.unet.full.empty()) {
        const Component& full = need_component(manifest, manifest.unet.full, "the UNet");
        if (!same_names(full.inputs, manifest.unet.inputs) || !same_names(full.outputs, manifest.unet.outputs)) {
            throw EngineError(
                text("the full UNet '", manifest.unet.full, "' has other inputs and outputs than the steps"));
        }
    }
    if (manifest.tokenizer) need_file(manifest, manifest.tokenizer->file, "the tokenizer");
    if (manifest.text_encoder) {
        const Component& encoder = need_component(manifest, manifest.text_encoder->component, "the text encoder");
        need_tensor(encoder.inputs, "input_ids", "the text encoder");
        need_tensor(encoder.outputs, "hidden_states", "the text encoder");
        if (!manifest.tokenizer) throw EngineError("there is a text encoder, but no tokenizer");
        if (manifest.tokenizer->model_max_length != manifest.text_encoder->max_length) {
            throw EngineError(text("the tokenizer makes ", manifest.tokenizer->model_max_length,
                                   " tokens, the text encoder takes ", manifest.text_encoder->max_length));
        }
    }
    if (manifest.vae) {
        const Component& decoder = need_component(manifest, manifest.vae->decoder, "the VAE");
        const Component& encoder = need_component(manifest, manifest.vae->encoder, "the VAE");
        need_tensor(decoder.inputs, "latents", "the VAE's decoder");
        need_tensor(decoder.outputs, "image", "the VAE's decoder");
        need_tensor(encoder.inputs, "image", "the VAE's encoder");
        need_tensor(encoder.outputs, "mean", "the VAE's encoder");
        need_tensor(encoder.outputs, "std", "the VAE's encoder");
        if (manifest.vae->latent_channels != manifest.unet.out_channels) {
            throw EngineError(text("the VAE has ", manifest.vae->latent_channels, " latent channels, the UNet ",
                                   manifest.unet.out_channels));
        }
        if (manifest.vae->scaling_factor == 0) throw EngineError("scaling_factor is 0");
    }
    need_file(manifest, manifest.schedulers.alphas_cumprod, "alphas_cumprod");
    for (const auto& [name, table] : manifest.schedulers.tables) need_file(manifest, table.file, "scheduler " + name);
}

}  // namespace ebca
