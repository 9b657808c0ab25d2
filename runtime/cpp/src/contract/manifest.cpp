#include "contract/manifest.hpp"

#include <algorithm>

#include "contract/json.hpp"
#include "contract/validation.hpp"
#include "error.hpp"

namespace ebca {
namespace {

constexpr const char* kFormat = "ebca-engine";
constexpr int64_t kVersion = 1;
constexpr size_t kLargestManifest = size_t{64} << 20;
constexpr int64_t kMany = int64_t{1} << 20;  // more channels, tokens, heads or steps than any model has
constexpr int64_t kMostLatents = 8, kMostNoises = 16, kMostEvaluations = 4096;  // of a scheduler's table
constexpr int64_t kHuge = int64_t{1} << 50;  // bytes

using json::Value;

std::vector<std::string> strings(const Value& value, std::string_view what) {
    std::vector<std::string> out;
    for (const Value& item : json::array(value, what)) out.push_back(json::string(item, what));
    return out;
}

// A string, or "" if it is null or missing.
std::string optional_string(const Value& holder, const char* name) {
    const Value& value = json::optional_member(holder, name);
    return value.is_null() ? std::string() : json::string(value, name);
}

DType dtype(const std::string& name, const std::string& tensor) {
    if (name == "float32") return DType::float32;
    if (name == "float16") return DType::float16;
    if (name == "int64") return DType::int64;
    throw EngineError(text("tensor '", tensor, "' has dtype '", name, "'"));
}

Dim dimension(const Value& value, const std::string& tensor) {
    if (value.is_string()) return parse_dim(value.get_ref<const std::string&>());
    return parse_dim(json::integer(value, text("a dimension of '", tensor, "'"), 1, kHuge));
}

std::map<std::string, TensorSpec> tensors(const Value& value, std::string_view what) {
    std::map<std::string, TensorSpec> out;
    for (const auto& [name, entry] : json::object(value, what).items()) {
        TensorSpec spec;
        spec.dtype = dtype(json::string(json::member(entry, "dtype"), "dtype"), name);
        for (const Value& dim : json::array(json::member(entry, "shape"), "shape")) {
            spec.shape.push_back(dimension(dim, name));
        }
        out.emplace(name, std::move(spec));
    }
    return out;
}

Component component(const Value& value) {
    Component out;
    out.graph = json::string(json::member(value, "graph"), "graph");
    out.inputs = tensors(json::member(value, "inputs"), "inputs");
    out.outputs = tensors(json::member(value, "outputs"), "outputs");
    out.weights = optional_string(value, "weights");
    for (const auto& [backend, graph] : json::object(json::member(value, "lowered"), "lowered").items()) {
        out.lowered[backend] = json::string(graph, "lowered");
    }
    out.float32_only = json::boolean(json::member(value, "float32_only"), "float32_only");
    return out;
}

LayerSpec layer(const Value& value) {
    LayerSpec out;
    out.name = json::string(json::member(value, "name"), "name of a layer");
    out.op = json::string(json::member(value, "op"), "op");
    out.heads = json::integer(json::member(value, "heads"), "heads", 1, kMany);
    out.head_dim = json::integer(json::member(value, "head_dim"), "head_dim", 1, kMany);
    out.height = dimension(json::member(value, "height"), out.name);
    out.width = dimension(json::member(value, "width"), out.name);
    return out;
}

Step step(const Value& value) {
    Step out;
    out.segment = optional_string(value, "segment");
    const Value& number = json::member(value, "layer");
    if (!number.is_null()) out.layer = json::integer(number, "layer", 0, kMany);
    out.inputs = strings(json::member(value, "inputs"), "inputs of a step");
    out.outputs = strings(json::member(value, "outputs"), "outputs of a step");
    if (out.segment.empty() != out.is_op()) throw EngineError("a step is neither a segment nor an op");
    return out;
}

UNetSpec unet(const Value& value) {
    UNetSpec out;
    out.in_channels = json::integer(json::member(value, "in_channels"), "in_channels", 1, kMany);
    out.out_channels = json::integer(json::member(value, "out_channels"), "out_channels", 1, kMany);
    out.context_dim = json::integer(json::member(value, "context_dim"), "context_dim", 1, kMany);
    out.sample_size = json::integer(json::member(value, "sample_size"), "sample_size", 1, kMany);
    out.inputs = strings(json::member(value, "inputs"), "inputs");
    out.outputs = strings(json::member(value, "outputs"), "outputs");
    out.tensors = tensors(json::member(value, "tensors"), "tensors");
    for (const Value& entry : json::array(json::member(value, "layers"), "layers")) out.layers.push_back(layer(entry));
    for (const auto& [op, variants] : json::object(json::member(value, "ops"), "ops").items()) {
        for (const auto& [variant, name] : json::object(variants, "the variants of an op").items()) {
            out.ops[op][variant] = json::string(name, "the component of an op");
        }
    }
    for (const Value& entry : json::array(json::member(value, "plan"), "plan")) out.steps.push_back(step(entry));
    const Value& bound = json::optional_member(value, "max_contexts");
    if (!bound.is_null()) out.max_contexts = json::integer(bound, "unet.max_contexts", 1, kMany);
    out.full = optional_string(value, "vanilla");
    const Value& channels_last = json::optional_member(value, "channels_last");
    if (!channels_last.is_null()) {
        for (const auto& [backend, names] : json::object(channels_last, "channels_last").items()) {
            out.channels_last[backend] = strings(names, "channels_last");
        }
    }
    return out;
}

TextEncoderSpec text_encoder(const Value& value) {
    return {json::string(json::member(value, "component"), "component"),
            json::integer(json::member(value, "max_length"), "max_length", 3, kMany),
            json::integer(json::member(value, "hidden_size"), "hidden_size", 1, kMany)};
}

VaeSpec vae(const Value& value) {
    VaeSpec out;
    out.decoder = json::string(json::member(value, "decoder"), "decoder");
    out.encoder = json::string(json::member(value, "encoder"), "encoder");
    out.latent_channels = json::integer(json::member(value, "latent_channels"), "latent_channels", 1, kMany);
    out.scaling_factor = json::number(json::member(value, "scaling_factor"), "scaling_factor");
    out.shift_factor = json::number(json::member(value, "shift_factor"), "shift_factor");
    out.downscale = json::integer(json::member(value, "downscale"), "downscale", 1, 256);
    return out;
}

TokenizerSpec tokenizer(const Value& value) {
    const Value& info = json::member(value, "info");
    auto id = [&](const char* name) { return json::integer(json::member(info, name), name, 0, INT32_MAX); };
    return {json::string(json::member(value, "file"), "file"),
            json::integer(json::member(info, "model_max_length"), "model_max_length", 3, kMany), id("bos_token_id"),
            id("eos_token_id"), id("pad_token_id")};
}

TableSpec table(const Value& value, const std::string& name) {
    TableSpec out;
    out.file = json::string(json::member(value, "file"), "file");
    const Value& minimum = json::optional_member(value, "minimum_steps");
    if (!minimum.is_null()) out.minimum_steps = json::integer(minimum, "minimum_steps", 1, kMany);
    const Value& memory = json::member(value, "memory");
    out.latents = json::integer(json::member(memory, "latents"), "latents", 1, kMostLatents);
    out.noises = json::integer(json::member(memory, "noises"), "noises", 1, kMostNoises);
    for (const auto& [count, evaluations] : json::object(json::member(value, "steps"), "steps").items()) {
        bool digits = !count.empty() && count.size() <= 7 && count.find_first_not_of("0123456789") == count.npos;
        int64_t steps = digits ? std::stoll(count) : 0;
        if (steps < 1) throw EngineError(text("the table of ", name, " has a record for '", count, "' steps"));
        // More evaluations than any scheduler needs; without a bound a damaged manifest could ask for gigabytes.
        out.steps[steps] = json::integer(evaluations, "evaluations", 1, std::min(4 * steps + 16, kMostEvaluations));
    }
    return out;
}

SchedulerSection schedulers(const Value& value) {
    SchedulerSection out;
    out.standard = json::string(json::member(value, "default"), "default");
    out.alphas_cumprod = json::string(json::member(value, "alphas_cumprod"), "alphas_cumprod");
    const Value& config = json::member(value, "config");
    out.train_timesteps = json::integer(json::member(config, "num_train_timesteps"), "num_train_timesteps", 1, kMany);
    out.prediction_type = optional_string(config, "prediction_type");
    if (out.prediction_type.empty()) out.prediction_type = "epsilon";
    out.image_to_image = optional_string(value, "image_to_image");
    if (out.image_to_image.empty()) out.image_to_image = "ddim";
    for (const auto& [name, entry] : json::object(json::member(value, "tables"), "tables").items()) {
        out.tables[name] = table(entry, name);
    }
    const Value& left_out = json::optional_member(value, "left_out");
    if (!left_out.is_null()) {
        for (const auto& [name, reason] : json::object(left_out, "left_out").items()) {
            out.left_out[name] = json::string(reason, name);
        }
    }
    return out;
}

Manifest parse(const Value& data) {
    Manifest out;
    const Value& model = json::member(data, "model");
    out.name = json::string(json::member(model, "name"), "name");
    out.kind = json::string(json::member(model, "kind"), "kind");
    const Value& scale = json::optional_member(model, "guidance_scale");
    if (!scale.is_null()) out.guidance_scale = json::number(scale, "guidance_scale");
    out.precision = json::string(json::member(data, "precision"), "precision");
    const Value& compute = json::optional_member(data, "compute");
    if (!compute.is_null()) out.compute = json::string(compute, "compute");
    for (const auto& [name, entry] : json::object(json::member(data, "components"), "components").items()) {
        out.components[name] = component(entry);
    }
    out.unet = unet(json::member(data, "unet"));
    out.schedulers = schedulers(json::member(data, "schedulers"));
    for (const auto& [path, record] : json::object(json::member(data, "files"), "files").items()) {
        out.files[path] = {json::integer(json::member(record, "size"), "size", 0, kHuge),
                           json::string(json::member(record, "sha256"), "sha256")};
    }
    const Value& encoder = json::member(data, "text_encoder");
    if (!encoder.is_null()) out.text_encoder = text_encoder(encoder);
    const Value& autoencoder = json::member(data, "vae");
    if (!autoencoder.is_null()) out.vae = vae(autoencoder);
    const Value& words = json::member(data, "tokenizer");
    if (!words.is_null()) out.tokenizer = tokenizer(words);
    return out;
}

}  // namespace

const std::string& Component::graph_for(const std::string& backend) const {
    auto found = lowered.find(backend);
    return found == lowered.end() ? graph : found->second;
}

std::vector<std::string> Component::files(const std::string& backend) const {
    std::vector<std::string> out{graph_for(backend)};
    if (!weights.empty()) out.push_back(weights);
    return out;
}

const Step* UNetSpec::time_step() const {
    const Step* first = steps.empty() ? nullptr : &steps.front();
    if (!first || first->is_op() || first->inputs != std::vector<std::string>{"timestep"}) return nullptr;
    bool in_rows = std::all_of(first->outputs.begin(), first->outputs.end(), [&](const std::string& name) {
        const std::vector<Dim>& shape = tensors.at(name).shape;
        return !shape.empty() && is_same(shape.front(), parse_dim("batch"));
    });
    return in_rows ? first : nullptr;
}

Dimensions Component::dimensions(const Sizes& sizes) const {
    Dimensions out;
    for (const auto* tensors : {&inputs, &outputs}) {
        for (const auto& [name, tensor] : *tensors) {
            for (const Dim& dim : tensor.shape) {
                if (!dim.factors.empty()) out[dim.text] = evaluate(dim, sizes);
            }
        }
    }
    return out;
}

Manifest parse_manifest(std::string_view bytes) {
    if (bytes.size() > kLargestManifest) throw EngineError("the manifest is larger than any that ebca writes");
    Value data;
    try {
        data = json::parse(bytes);
    } catch (const EngineError& error) {
        throw EngineError(text("the manifest cannot be read: ", error.what()), "export the engine again");
    }
    if (json::optional_member(data, "format") != kFormat) {
        throw EngineError(text("this is not an ebca manifest (no format '", kFormat, "')"));
    }
    const Value& version = json::optional_member(data, "version");
    if (!version.is_number_integer() || version < 1 || version > kVersion) {
        throw EngineError(
            text("the manifest has version ", version.dump(-1, ' ', true, Value::error_handler_t::replace),
                 ", this library reads up to ", kVersion),
            "update it or export the engine again");
    }
    try {
        Manifest manifest = parse(data);
        validate(manifest);
        return manifest;
    } catch (const EngineError& error) {
        throw EngineError(text("the manifest is broken: ", error.what()), "export the engine again");
    }
}

}  // namespace ebca
