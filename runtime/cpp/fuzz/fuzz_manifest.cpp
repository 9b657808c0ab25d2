// The manifest reader on untrusted input: it may throw only this library's errors, and what it accepts fits the
// host's arrays at every size and can be laid out. run.sh builds it.

#include <cstddef>
#include <cstdint>
#include <string>

#include "contract/manifest.hpp"
#include "error.hpp"
#include "execution/arena.hpp"

using namespace ebca::internal;

namespace {

void check(bool holds) {
    if (!holds) __builtin_trap();
}

// What an executor does with a manifest before it opens anything, and what the loop writes into its buffers.
void lay_out_tensors(const Manifest& manifest, const Sizes& sizes) {
    const UNetSpec& unet = manifest.unet;
    auto at = [&](const char* name) { return sizes.at(name); };
    auto shape = [&](const char* name) { return evaluate(unet.tensors.at(name).shape, sizes); };
    check(shape("sample") == Shape{at("batch"), unet.in_channels, at("height"), at("width")});
    check(shape("noise") == Shape{at("batch"), unet.out_channels, at("height"), at("width")});
    check(shape("timestep") == Shape{at("batch")});
    check(shape("contexts") == Shape{at("batch"), at("contexts"), at("tokens"), unet.context_dim});
    check(shape("contexts_out") == shape("contexts"));
    check(!manifest.vae || manifest.vae->latent_channels == unet.out_channels);
    std::map<std::string, int64_t> bytes;
    for (const auto& [name, spec] : unet.tensors) {
        bytes[name] = byte_size(evaluate(spec.shape, sizes), spec.dtype);
    }
    std::vector<std::string> keep = unet.inputs;
    keep.insert(keep.end(), unet.outputs.begin(), unet.outputs.end());
    lay_out(lifetimes(unet.steps, bytes, keep));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        // As if the export had written it: otherwise nothing would get past the digest.
        const std::string bytes = stamped({reinterpret_cast<const char*>(data), size});
        Manifest manifest = parse_manifest(bytes);
        lay_out_tensors(manifest, {{"batch", 2}, {"contexts", 2}, {"tokens", 77}, {"height", 64}, {"width", 128}});
        lay_out_tensors(manifest, {{"batch", 1}, {"contexts", 1}, {"tokens", 3}, {"height", 7}, {"width", 5}});
    } catch (const Error&) {
    }
    return 0;
}
