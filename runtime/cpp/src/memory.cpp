#include "memory.hpp"

#include <algorithm>
#include <iomanip>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <utility>
#include <vector>

#include "contract/tensor.hpp"
#include "execution/arena.hpp"
#include "images/tiling.hpp"
#include "numerals.hpp"
#include "parameters.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

std::string shown(int64_t bytes) {
    ClassicText out;
    auto number = static_cast<double>(bytes);
    out << std::fixed << std::setprecision(1);
    if (number >= 1e12) {
        out << number / 1e12 << " TB";
    } else if (number >= 1e9) {
        out << number / 1e9 << " GB";
    } else {
        out << std::setprecision(0) << number / 1e6 << " MB";
    }
    return out.str();
}

int64_t bytes_of(const TensorSpec& tensor, const Sizes& sizes) {
    return byte_size(evaluate(tensor.shape, sizes), tensor.dtype);
}

int64_t float_bytes(const Shape& shape) {
    return byte_size(shape, DType::float32);
}

// What the buffers of an evaluation take, as Executor allocates them.
int64_t buffer_bytes(const UNetSpec& unet, const Sizes& sizes) {
    std::map<std::string, int64_t> bytes;
    for (const auto& [name, spec] : unet.tensors) bytes[name] = bytes_of(spec, sizes);
    std::vector<std::string> keep = unet.inputs;
    keep.insert(keep.end(), unet.outputs.begin(), unet.outputs.end());
    std::map<std::string, Lifetime> alive = lifetimes(unet.steps, bytes, keep);
    int64_t total = 0, zeros = 0, widest = 0;
    if (const Step* step = unet.time_step()) {
        for (const std::string& name : step->outputs) {
            total += bytes.at(name);
            alive.erase(name);
        }
    }
    for (const std::string& name : unet.controls) {
        zeros = std::max(zeros, bytes.at(name));
        alive.erase(name);
    }
    total += lay_out(alive).bytes + zeros;
    int64_t batch = sizes.at("batch"), contexts = sizes.at("contexts"), tokens = sizes.at("tokens");
    total += float_bytes({batch, contexts}) * 2 + float_bytes({batch, contexts, tokens}) + float_bytes({}) +
             float_bytes({batch, contexts, contexts});
    std::set<std::pair<int64_t, int64_t>> masks;
    for (const LayerSpec& layer : unet.layers) {
        std::pair size{evaluate(layer.height, sizes), evaluate(layer.width, sizes)};
        if (masks.insert(size).second) total += float_bytes({batch, contexts, elements({size.first, size.second})});
        widest = std::max(widest, elements({layer.heads, layer.head_dim}));
    }
    return total + float_bytes({batch, contexts, tokens, widest});
}

// What a component needs inside at least.
int64_t scratch_bytes(const Component& component, const Sizes& sizes, bool half) {
    int64_t largest = 0;
    for (const std::vector<TensorSpec>& together : component.scratch) {
        int64_t total = 0;
        for (const TensorSpec& tensor : together) total += bytes_of(tensor, sizes);
        largest = std::max(largest, total);
    }
    return half && !component.float32_only ? largest / 2 : largest;
}

// What the host keeps while it samples.
int64_t held_bytes(const UNetSpec& unet, const CallSizes& call) {
    const Sizes& sizes = call.evaluation;
    const Shape latents{call.images, unet.out_channels, sizes.at("height"), sizes.at("width")};
    return call.evaluations *
           (float_bytes({sizes.at("batch"), sizes.at("contexts"), sizes.at("tokens")}) + float_bytes(latents));
}

// The most that exists at the same time while texts are encoded and latents are sampled.
int64_t sampling_bytes(const Manifest& manifest, bool half, const CallSizes& call) {
    const UNetSpec& unet = manifest.unet;
    int64_t segments = 0;
    for (const Step& step : unet.steps) {
        if (step.is_op()) continue;
        segments = std::max(segments, scratch_bytes(manifest.components.at(step.segment), call.evaluation, half));
    }
    int64_t peak = held_bytes(unet, call) + buffer_bytes(unet, call.evaluation) + segments;
    if (!manifest.text_encoder || !call.texts) return peak;
    const TextEncoderSpec& spec = *manifest.text_encoder;
    Sizes texts = call.evaluation;
    texts["batch"] = call.texts;
    int64_t made = float_bytes({call.texts, spec.max_length * spec.hidden_size + spec.pooled_size});
    return std::max(peak, scratch_bytes(manifest.components.at(spec.component), texts, half) + made);
}

// The same while the VAE runs.
int64_t vae_bytes(const Manifest& manifest, bool half, const CallSizes& call) {
    if (!manifest.vae) return 0;
    Sizes one = call.evaluation;
    one["batch"] = 1;
    for (const char* name : {"height", "width"}) {
        if (call.tiled) one[name] = std::min(one[name], tile_side(manifest.unet.sample_size));
    }
    auto scratch = [&](const std::string& name) { return scratch_bytes(manifest.components.at(name), one, half); };
    int64_t peak = call.encodes ? scratch(manifest.vae->encoder) + 12 * call.pixels : 0;
    if (!call.decodes) return peak;
    // The buffers of the evaluations are still there. Decoded images as the VAE returns them, and in [0, 1]: float32,
    // three channels.
    int64_t buffers = held_bytes(manifest.unet, call) + buffer_bytes(manifest.unet, call.evaluation);
    return std::max(peak, buffers + scratch(manifest.vae->decoder) + 24 * call.images * call.pixels);
}

}  // namespace

bool is_about_memory(const std::string& message) {
    for (const char* words :
         {"bad_alloc", "bad_array_new_length", "Failed to allocate memory", "out of memory", "Out of memory",
          "Available memory of", "BFCArena", "Cannot allocate memory", "could not allocate",
          "could not create a memory", "length_error", "cannot create std::vector larger", "vector::_M_default_append",
          "vector::reserve", "Resource temporarily unavailable", "pthread_create failed"}) {
        if (message.find(words) != message.npos) return true;
    }
    return false;
}

void check_host_memory(const Manifest& manifest, bool half, const CallSizes& call, const std::string& what) {
    int64_t available = platform::available_bytes(), needed = sampling_bytes(manifest, half, call);
    if (needed > available) throw rules::memory_needed(shown(needed), "", what, shown(available));
    needed = vae_bytes(manifest, half, call);
    if (needed <= available) return;
    int64_t side = tile_side(manifest.unet.sample_size);
    if (!call.tiled && is_tiled(call.evaluation.at("height"), call.evaluation.at("width"), side)) {
        throw rules::memory_needed_untiled(shown(needed), "", what, shown(available));
    }
    throw rules::memory_needed(shown(needed), "", what, shown(available));
}

}  // namespace ebca::internal
