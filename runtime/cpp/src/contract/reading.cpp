#include "contract/reading.hpp"

#include <algorithm>

#include "contract/limits.hpp"
#include "error.hpp"

namespace ebca::internal {
namespace {

using Names = std::vector<std::string>;

const Names kSizes{"batch", "contexts", "tokens", "height", "width"};
// What the op's own graphs call the positions of a layer, and groups of tokens.
const Names kComponentSizes{"batch", "contexts", "tokens", "height", "width", "positions", "groups"};

bool is_in(const std::string& name, const Names& names) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

// A string, or "" if it is null or missing.
std::string optional_name(const Entry& holder, const char* name) {
    std::optional<Entry> found = holder.get(name);
    return found ? found->name() : std::string();
}

// That of a file, which must be one of `files`: an empty path is none of them.
std::string path(const Entry& entry) {
    std::string found = entry.text();
    if (found.empty()) throw EngineError(text(entry.path(), " is empty"));
    return found;
}

DType dtype(const Entry& entry) {
    static const std::map<std::string, DType> known{
        {"float32", DType::float32}, {"float16", DType::float16}, {"int64", DType::int64}, {"int32", DType::int32}};
    return known.at(entry.choice({"float32", "float16", "int64", "int32"}));
}

Dim dimension(const Entry& entry, const Names& names) {
    if (!entry.is_text()) return parse_dim(entry.integer(1, limits::dimension));
    std::string spelled = entry.name();
    try {
        Dim dim = parse_dim(std::string_view(spelled));
        for (const Dim::Factor& factor : dim.factors) {
            if (!is_in(factor.name, names)) {
                throw EngineError(text("dimension '", dim.text, "' uses the unknown name '", factor.name, "'"));
            }
        }
        return dim;
    } catch (const EngineError& error) {
        throw EngineError(text(entry.path(), ": ", error.problem()), error.remedy());
    }
}

TensorSpec tensor(const Entry& entry, const Names& names) {
    TensorSpec spec;
    spec.dtype = dtype(entry.at("dtype"));
    for (const Entry& element : entry.at("shape").elements()) spec.shape.push_back(dimension(element, names));
    return spec;
}

std::map<std::string, TensorSpec> tensors(const Entry& entry, const Names& names) {
    std::map<std::string, TensorSpec> out;
    entry.members([&](const std::string& name, const Entry& value) { out.emplace(name, tensor(value, names)); });
    return out;
}

Component component(const Entry& entry) {
    Component out;
    out.graph = path(entry.at("graph"));
    out.inputs = tensors(entry.at("inputs"), kComponentSizes);
    out.outputs = tensors(entry.at("outputs"), kComponentSizes);
    if (auto weights = entry.get("weights")) out.weights = path(*weights);
    entry.at("lowered").members(
        [&](const std::string& backend, const Entry& graph) { out.lowered[backend] = path(graph); });
    out.float32_only = entry.at("float32_only").boolean();
    if (auto scratch = entry.get("scratch")) {
        for (const Entry& together : scratch->elements()) {
            std::vector<TensorSpec>& tensors = out.scratch.emplace_back();
            for (const Entry& one : together.elements()) tensors.push_back(tensor(one, kComponentSizes));
        }
    }
    return out;
}

// The name of a component becomes that of files in the cache, where engine.json is the cache's own.
void check_file_stem(const std::string& name, const Entry& entry) {
    bool unusable = name.front() == '.' || name.find_first_of("/\\") != name.npos || name == "engine";
    if (unusable || name.size() > static_cast<size_t>(limits::name_bytes)) {
        throw EngineError(text(entry.path(), " cannot be the name of a component"));
    }
}

LayerSpec layer(const Entry& entry) {
    LayerSpec out;
    out.name = entry.at("name").name();
    out.op = entry.at("op").name();
    out.heads = entry.at("heads").integer(1, limits::dimension);
    out.head_dim = entry.at("head_dim").integer(1, limits::dimension);
    out.height = dimension(entry.at("height"), kSizes);
    out.width = dimension(entry.at("width"), kSizes);
    return out;
}

Step step(const Entry& entry) {
    Step out;
    out.segment = optional_name(entry, "segment");
    if (auto number = entry.get("layer")) out.layer = number->integer(0, limits::dimension);
    if (out.segment.empty() != out.is_op()) {
        throw EngineError(text(entry.path(), " has to name either a segment or a layer"));
    }
    out.inputs = entry.at("inputs").names();
    out.outputs = entry.at("outputs").names();
    return out;
}

SubjectLayers subject_layers(const Entry& entry) {
    auto layers = [&](const char* name) {
        std::vector<int64_t> out;
        for (const Entry& one : entry.at(name).elements()) out.push_back(one.integer(0, limits::dimension));
        return out;
    };
    return {layers("biased"), layers("sources")};
}

UNetSpec unet(const Entry& entry) {
    UNetSpec out;
    auto size = [&](const char* name) { return entry.at(name).integer(1, limits::dimension); };
    out.in_channels = size("in_channels");
    out.out_channels = size("out_channels");
    out.context_dim = size("context_dim");
    out.sample_size = entry.at("sample_size").integer(1, limits::sample_size);
    out.inputs = entry.at("inputs").names();
    out.outputs = entry.at("outputs").names();
    out.tensors = tensors(entry.at("tensors"), kSizes);
    for (const Entry& one : entry.at("layers").elements()) out.layers.push_back(layer(one));
    entry.at("ops").members([&](const std::string& op, const Entry& variants) {
        auto& its = out.ops[op];
        variants.members([&](const std::string& variant, const Entry& name) { its[variant] = name.name(); });
    });
    for (const Entry& one : entry.at("plan").elements()) out.steps.push_back(step(one));
    if (auto bound = entry.get("max_contexts")) out.max_contexts = bound->integer(1, limits::contexts);
    out.full = optional_name(entry, "vanilla");
    out.full_with_updates = optional_name(entry, "whole");
    if (auto last = entry.get("channels_last")) {
        last->members(
            [&](const std::string& backend, const Entry& names) { out.channels_last[backend] = names.names(); });
    }
    if (auto subjects = entry.get("subject_layers")) out.subject_layers = subject_layers(*subjects);
    if (auto controls = entry.get("controls")) out.controls = controls->names();
    return out;
}

// Of what a directory was made: for people, so that it is only checked.
void check_derived(const Entry& entry) {
    entry.at("base").text();
    for (const Entry& adapter : entry.at("adapters").elements()) {
        adapter.at("kind").choice({"lora", "embedding"});
        adapter.at("file").text();
        adapter.at("sha256").text();
        if (auto scale = adapter.get("scale")) scale->number();
        if (auto token = adapter.get("token")) token->name();
    }
}

TextEncoderSpec text_encoder(const Entry& entry) {
    TextEncoderSpec out{entry.at("component").name(), entry.at("max_length").integer(3, limits::tokens),
                        entry.at("hidden_size").integer(1, limits::dimension)};
    if (auto layers = entry.get("layers")) out.layers = layers->integer(1, limits::dimension);
    if (auto component = entry.get("layers_component")) out.layers_component = component->name();
    if (auto first = entry.get("first_hidden_size")) out.first_hidden_size = first->integer(1, limits::dimension);
    if (auto pooled = entry.get("pooled_size")) out.pooled_size = pooled->integer(1, limits::dimension);
    return out;
}

VaeSpec vae(const Entry& entry) {
    VaeSpec out;
    out.decoder = entry.at("decoder").name();
    out.encoder = entry.at("encoder").name();
    out.latent_channels = entry.at("latent_channels").integer(1, limits::dimension);
    out.scaling_factor = entry.at("scaling_factor").number(1 / limits::factor, limits::factor);
    out.shift_factor = entry.at("shift_factor").number(-limits::factor, limits::factor);
    out.downscale = entry.at("downscale").integer(1, limits::downscale);
    if (auto preview = entry.get("preview")) out.preview = preview->name();
    return out;
}

TokenizerSpec tokenizer(const Entry& entry) {
    const Entry info = entry.at("info");
    TokenizerSpec out;
    out.file = path(entry.at("file"));
    out.model_max_length = info.at("model_max_length").integer(3, limits::tokens);
    auto token = [&](const std::string& name) {
        return SpecialToken{info.at(name).name(), info.at(name + "_id").integer(0, limits::token_id)};
    };
    out.bos = token("bos_token");
    out.eos = token("eos_token");
    out.pad = token("pad_token");
    if (auto second = info.get("pad_token_2")) {
        out.pad_2 = {second->name(), info.at("pad_token_id_2").integer(0, limits::token_id)};
    }
    if (auto expansions = info.get("expansions")) {
        expansions->members([&](const std::string&, const Entry& one) {
            std::vector<int64_t> ids;
            for (const Entry& id : one.elements()) ids.push_back(id.integer(0, limits::token_id));
            if (ids.empty()) one.refuse("a list of token ids");
            out.expansions[ids.front()] = ids;
        });
    }
    return out;
}

TableSpec table(const Entry& entry) {
    TableSpec out;
    out.file = path(entry.at("file"));
    if (auto minimum = entry.get("minimum_steps")) out.minimum_steps = minimum->integer(1, limits::steps);
    const Entry memory = entry.at("memory"), steps = entry.at("steps");
    out.latents = memory.at("latents").integer(1, limits::table_latents);
    out.noises = memory.at("noises").integer(1, limits::table_noises);
    if (auto fresh = memory.get("fresh_noises")) out.fresh = fresh->integer(0, limits::table_fresh_noises);
    if (auto order = entry.get("order")) out.order = order->integer(1, limits::table_order);
    steps.members([&](const std::string& count, const Entry& evaluations) {
        bool digits = count.size() <= 7 && count.front() != '0' && count.find_first_not_of("0123456789") == count.npos;
        if (!digits) throw EngineError(text(steps.path(), " has '", count, "' instead of a number of steps"));
        int64_t number = std::stoll(count);
        // More evaluations than any scheduler needs.
        out.steps[number] = evaluations.integer(1, std::min(4 * number + 16, limits::table_evaluations));
    });
    return out;
}

SchedulerSection schedulers(const Entry& entry) {
    SchedulerSection out;
    out.standard = entry.at("default").name();
    out.alphas_cumprod = path(entry.at("alphas_cumprod"));
    if (auto steps = entry.get("default_steps")) out.default_steps = steps->integer(1, limits::steps);
    const Entry config = entry.at("config");
    out.train_timesteps = config.at("num_train_timesteps").integer(1, limits::train_timesteps);
    out.prediction_type = optional_name(config, "prediction_type");
    if (out.prediction_type.empty()) out.prediction_type = "epsilon";
    out.image_to_image = optional_name(entry, "image_to_image");
    entry.at("tables").members([&](const std::string& name, const Entry& one) { out.tables[name] = table(one); });
    if (auto left_out = entry.get("left_out")) {
        left_out->members([&](const std::string& name, const Entry& reason) { out.left_out[name] = reason.text(); });
    }
    return out;
}

FileRecord record(const Entry& entry) {
    return {entry.at("size").integer(0, limits::file_bytes), entry.at("sha256").sha256()};
}

std::array<int64_t, 3> range(const std::string& name, const Entry& entry) {
    if (!is_in(name, kSizes)) throw EngineError(text(entry.path(), " is not the name of a size"));
    std::vector<int64_t> values;
    for (const Entry& value : entry.elements()) values.push_back(value.integer(1, limits::dimension));
    if (values.size() != 3 || !std::is_sorted(values.begin(), values.end())) {
        throw EngineError(text(entry.path(), " is not a smallest, best and largest size"));
    }
    return {values[0], values[1], values[2]};
}

std::map<std::string, std::array<int64_t, 3>> ranges(const Entry& entry) {
    std::map<std::string, std::array<int64_t, 3>> out;
    entry.members([&](const std::string& name, const Entry& one) { out[name] = range(name, one); });
    return out;
}

Plan plan(const Entry& entry) {
    Plan out{path(entry.at("file")), ranges(entry.at("sizes")), tensors(entry.at("inputs"), kSizes),
             tensors(entry.at("outputs"), kSizes)};
    if (auto scratch = entry.get("scratch_bytes")) scratch->integer(0, limits::file_bytes);
    return out;
}

// "8.9"
bool is_capability(const std::string& name) {
    size_t dot = name.find('.');
    auto digits = [](const std::string& part) {
        return !part.empty() && part.find_first_not_of("0123456789") == part.npos;
    };
    return dot != name.npos && digits(name.substr(0, dot)) && digits(name.substr(dot + 1));
}

LibraryPlans library_plans(const Entry& entry) {
    for (const std::string& capability : entry.at("compute_capabilities").names()) {
        if (!is_capability(capability)) {
            throw EngineError(text(entry.path(), " names the compute capability '", capability, "'"));
        }
    }
    entry.at("version").name();
    entry.at("platform").name();
    const std::vector<Entry> shapes = entry.at("shapes").elements();
    bool complete = !shapes.empty() && std::all_of(shapes.begin(), shapes.end(), [](const Entry& shape) {
        return ranges(shape).size() == kSizes.size();
    });
    if (!complete) throw EngineError(text(entry.path(), ".shapes is empty, or lacks a size"));
    LibraryPlans out;
    entry.at("components").members([&](const std::string& name, const Entry& plans) {
        auto& its = out[name];
        for (const Entry& one : plans.elements()) its.push_back(plan(one));
    });
    return out;
}

// Errors against PyTorch: numbers, and objects of them.
void check_errors(const Entry& entry) {
    entry.members([](const std::string&, const Entry& value) {
        if (value.is_object()) {
            check_errors(value);
        } else {
            value.number();
        }
    });
}

void read_model(const Entry& entry, Manifest& out) {
    out.name = entry.at("name").name();
    out.kind = entry.at("kind").choice({"text-to-image", "inpainting", "instruct-pix2pix", "unet"});
    if (auto scale = entry.get("guidance_scale")) out.guidance_scale = scale->number(-limits::factor, limits::factor);
    if (auto zeros = entry.get("force_zeros_for_empty_prompt")) out.force_zeros_for_empty_prompt = zeros->boolean();
    if (auto source = entry.get("source")) {
        source->members([](const std::string&, const Entry& value) {
            if (!value.is_null()) value.text();
        });
    }
}

}  // namespace

Manifest read_manifest(const Entry& document) {
    Manifest out;
    read_model(document.at("model"), out);
    out.precision = document.at("precision").choice({"fp32", "fp16"});
    if (auto compute = document.get("compute")) out.compute = compute->choice({"fp32", "fp16"});
    document.at("components").members([&](const std::string& name, const Entry& entry) {
        check_file_stem(name, entry);
        out.components[name] = component(entry);
    });
    out.unet = unet(document.at("unet"));
    out.schedulers = schedulers(document.at("schedulers"));
    document.at("files").members([&](const std::string& name, const Entry& entry) { out.files[name] = record(entry); });
    if (auto entry = document.get("text_encoder")) out.text_encoder = text_encoder(*entry);
    if (auto entry = document.get("vae")) out.vae = vae(*entry);
    if (auto entry = document.get("tokenizer")) out.tokenizer = tokenizer(*entry);
    if (auto entry = document.get("parity")) check_errors(*entry);
    if (auto entry = document.get("created_by")) {
        entry->members([](const std::string&, const Entry& version) { version.name(); });
    }
    if (auto entry = document.get("weights")) out.weights = entry->text();
    if (auto entry = document.get("derived")) check_derived(*entry);
    if (auto entry = document.get("plans")) {
        entry->members([&](const std::string& library, const Entry& its) { out.plans[library] = library_plans(its); });
    }
    return out;
}

}  // namespace ebca::internal
