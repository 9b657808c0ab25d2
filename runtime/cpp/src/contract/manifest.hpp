// `manifest.json`: what a host must know to run an engine directory. docs/engine-directory.md describes it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "contract/dims.hpp"
#include "contract/special_token.hpp"
#include "contract/tensor.hpp"

namespace ebca::internal {

struct TensorSpec {
    DType dtype = DType::float32;
    std::vector<Dim> shape;
};

// One graph that an inference engine runs: a segment, a variant of the op, a text encoder, half of a VAE.
struct Component {
    std::string graph;
    std::map<std::string, TensorSpec> inputs;
    std::map<std::string, TensorSpec> outputs;
    std::string weights;                         // empty: none
    std::map<std::string, std::string> lowered;  // backend to graph
    bool float32_only = false;                   // never run at a lower precision
    // Tensors inside that exist at the same time, for each operator that needs the most.
    std::vector<std::vector<TensorSpec>> scratch;

    const std::string& graph_for(const std::string& backend) const;
    // The graph and its weights.
    std::vector<std::string> files(const std::string& backend) const;
    // The value of every symbolic dimension of its inputs and outputs. EngineError as `evaluate`.
    Dimensions dimensions(const Sizes& sizes) const;
};

// One cross-attention layer: its name in the checkpoint, its op, and the size of its positions.
struct LayerSpec {
    std::string name;
    std::string op;
    int64_t heads = 0;
    int64_t head_dim = 0;
    Dim height;
    Dim width;
};

// One step of the UNet: a segment, which binds tensors by their own names, or the op of a layer: q, k, v -> out, g.
struct Step {
    std::string segment;  // empty for an op
    int64_t layer = -1;   // -1 for a segment
    std::vector<std::string> inputs;
    std::vector<std::string> outputs;

    bool is_op() const { return layer >= 0; }
};

// Where exclusive attention works: layers of one size, whose ops have the guided variants too. The biased ones add the
// bias to the scores; the maps of the sources, some of these, tell where a subject is.
struct SubjectLayers {
    std::vector<int64_t> biased;
    std::vector<int64_t> sources;
};

// What the UNet of Stable Diffusion XL takes beside the others, both float32: the pooled embedding of the prompt
// ["batch", P], and sizes ["batch", 6]: original height and width, top and left of the crop, target height and width.
inline constexpr const char* kTextEmbeds = "text_embeds";
inline constexpr const char* kTimeIds = "time_ids";
inline constexpr int64_t kTimeIdCount = 6;

struct UNetSpec {
    int64_t in_channels = 0;
    int64_t out_channels = 0;
    int64_t context_dim = 0;
    int64_t sample_size = 0;
    std::vector<std::string> inputs;   // sample, timestep, contexts; for Stable Diffusion XL also text_embeds, time_ids
    std::vector<std::string> outputs;  // noise, contexts_out
    std::map<std::string, TensorSpec> tensors;
    std::vector<LayerSpec> layers;
    std::map<std::string, std::map<std::string, std::string>> ops;  // op, variant -> component
    std::vector<Step> steps;
    std::optional<int64_t> max_contexts;
    std::string full;               // component of the full UNet; empty: none
    std::string full_with_updates;  // the same of the one with updates, which this library does not run
    // The first step, if it depends on the timestep alone and has a row per timestep; else null.
    const Step* time_step() const;

    // Images between segments that are [B,h,w,C] in a backend's graphs, by backend; `tensors` has [B,C,h,w].
    std::map<std::string, std::vector<std::string>> channels_last;

    std::optional<SubjectLayers> subject_layers;  // none: no layer can tell where a subject is

    // What ControlNets add to the UNet, float32. This library runs none, so segments read zeros here.
    std::vector<std::string> controls;

    // The width P of text_embeds ["batch", P]; 0 for a UNet that takes none.
    int64_t pooled_size() const;
};

struct VaeSpec {
    std::string decoder;
    std::string encoder;
    int64_t latent_channels = 0;
    double scaling_factor = 1;
    double shift_factor = 0;
    int64_t downscale = 8;
    std::string preview;  // a small decoder, which this library does not use; empty: none
};

struct TextEncoderSpec {
    std::string component;
    int64_t max_length = 0;
    int64_t hidden_size = 0;
    int64_t layers = 0;                 // 0: not known
    std::string layers_component = {};  // takes hidden states of earlier layers; or ""
    // Width of what two encoders in one component pool; 0: there is one encoder. Two take input_ids_2 too, and
    // hidden_size is that of both together, the first one's part first.
    int64_t pooled_size = 0;
    int64_t first_hidden_size = 0;
};

struct TokenizerSpec {
    std::string file;
    int64_t model_max_length = 0;
    SpecialToken bos, eos, pad;
    std::optional<SpecialToken> pad_2;                   // of the second text encoder
    std::map<int64_t, std::vector<int64_t>> expansions;  // token -> all that it stands for, itself first
};

// The file of one scheduler: a record for each number of steps, in the order of these.
struct TableSpec {
    std::string file;
    int64_t minimum_steps = 1;
    int64_t latents = 1, noises = 1;   // that a scheduler step looks back at
    int64_t fresh = 0;                 // draws of noise that it uses
    int64_t order = 1;                 // evaluations per step
    std::map<int64_t, int64_t> steps;  // number of steps to evaluations

    // Size of the record of m evaluations in float64 values.
    int64_t values(int64_t m) const { return 1 + m * (2 + latents + noises + fresh); }
};

struct SchedulerSection {
    std::string standard;        // "default" in the manifest
    std::string image_to_image;  // the default for starts at an intermediate noise level
    std::string alphas_cumprod;
    int64_t default_steps = 0;  // of a request that does not say; 0: the usual number
    int64_t train_timesteps = 0;
    std::string prediction_type;
    std::map<std::string, TableSpec> tables;
    std::map<std::string, std::string> left_out;  // name to the reason
};

// TensorRT plans of one library. This library runs none; they are checked like the rest.
struct Plan {
    std::string file;
    std::map<std::string, std::array<int64_t, 3>> sizes;  // smallest, best and largest
    std::map<std::string, TensorSpec> inputs;
    std::map<std::string, TensorSpec> outputs;
};

using LibraryPlans = std::map<std::string, std::vector<Plan>>;  // by component

struct FileRecord {
    int64_t size = 0;
    std::string sha256;
};

struct Manifest {
    std::string name;
    std::string kind;  // "text-to-image", "inpainting", "instruct-pix2pix", "unet"
    double guidance_scale = 7.5;
    bool force_zeros_for_empty_prompt = false;  // an empty negative prompt stands for embeddings that are zero
    std::string precision;
    std::string compute = "fp32";
    std::map<std::string, Component> components;
    UNetSpec unet;
    SchedulerSection schedulers;
    std::map<std::string, FileRecord> files;
    std::optional<TextEncoderSpec> text_encoder;
    std::optional<VaeSpec> vae;
    std::optional<TokenizerSpec> tokenizer;
    std::map<std::string, LibraryPlans> plans;
    std::string weights;  // the file that says where each weight lies, which this library does not read; or ""
};

// Reads and validates the bytes of a manifest.json, which errors call `what`. Any bytes are safe: the result is
// consistent, every file it names is among `files`, and no path leaves the directory. EngineError for everything else,
// and for bytes that were changed after the export.
Manifest parse_manifest(std::string_view bytes, const std::string& what = "manifest.json");

// The bytes of a manifest with the digest that they should have; unchanged if they hold none.
std::string stamped(std::string_view bytes);

}  // namespace ebca::internal
