#include "contract/manifest.hpp"

#include <algorithm>

#include "contract/json.hpp"
#include "contract/limits.hpp"
#include "contract/reading.hpp"
#include "contract/sha256.hpp"
#include "contract/validation.hpp"
#include "error.hpp"

namespace ebca::internal {
namespace {

constexpr const char* kManifestFormat = "ebca-engine";
constexpr int64_t kManifestVersion = 2;
constexpr size_t kDigest = 64;  // hexadecimal digits

// The SHA-256 of bytes in which the 64 that start at `begin` are zeros. engines/contract/digest.py is the same in
// Python.
std::string digest_of(std::string_view bytes, size_t begin) {
    Sha256 digest;
    digest.update(bytes.data(), begin);
    digest.update(std::string(kDigest, '0').data(), kDigest);
    digest.update(bytes.data() + begin + kDigest, bytes.size() - begin - kDigest);
    return digest.hex();
}

bool is_digest(std::string_view text) {
    return text.size() == kDigest && text.find_first_not_of("0123456789abcdef") == text.npos;
}

// Whether a manifest's bytes are those that were stamped with the digest that it holds.
bool is_unchanged(std::string_view bytes, const json::Value& digest) {
    if (!digest.is_string() || !is_digest(digest.get_ref<const std::string&>())) return false;
    const auto& expected = digest.get_ref<const std::string&>();
    size_t begin = bytes.find(expected);
    return begin != bytes.npos && digest_of(bytes, begin) == expected;
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

int64_t UNetSpec::pooled_size() const {
    bool takes = std::find(inputs.begin(), inputs.end(), kTextEmbeds) != inputs.end();
    return takes ? tensors.at(kTextEmbeds).shape.at(1).constant : 0;
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

std::string stamped(std::string_view bytes) {
    constexpr std::string_view kName = "\"digest\": \"";
    std::string out(bytes);
    size_t name = out.find(kName), begin = name + kName.size();
    if (name == out.npos || !is_digest(std::string_view(out).substr(begin, kDigest))) return out;
    return out.replace(begin, kDigest, digest_of(out, begin));
}

Manifest parse_manifest(std::string_view bytes, const std::string& what) {
    if (bytes.size() > static_cast<size_t>(limits::manifest_bytes)) {
        throw EngineError(what + " is larger than any that ebca writes", "export the engine again");
    }
    json::Value data;
    const json::TakenApart without_memory(data);
    try {
        data = json::parse_strict(bytes);
    } catch (const EngineError& error) {
        throw EngineError(text(what, " cannot be read: ", error.what()), "copy or export the engine again");
    }
    if (!json::is(json::optional_member(data, "format"), kManifestFormat)) {
        throw EngineError(text(what, " is not an ebca manifest (no format '", kManifestFormat, "')"),
                          "name an engine directory");
    }
    const json::Value& version = json::optional_member(data, "version");
    if (!version.is_number_integer() || version != kManifestVersion) {
        bool newer = version.is_number_integer() && version > kManifestVersion;
        std::string shown = json::dumped(version).substr(0, 60);
        throw EngineError(text(what, " has manifest version ", shown, ", this library reads ", kManifestVersion),
                          newer ? "update it or export the engine again" : "export the engine again");
    }
    if (!is_unchanged(bytes, json::optional_member(data, "digest"))) {
        throw EngineError(what + " was changed or damaged after the export: its digest is another one",
                          "copy the engine directory again or export it again");
    }
    try {
        Manifest manifest = read_manifest(Entry(data, ""));
        validate(manifest);
        if (manifest.schedulers.image_to_image.empty()) manifest.schedulers.image_to_image = "ddim";
        return manifest;
    } catch (const EngineError& error) {
        throw EngineError(text(what, " is broken: ", error.problem()),
                          error.remedy().empty() ? "export the engine again" : error.remedy());
    }
}

}  // namespace ebca::internal
