#include "contract/checks.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

#include "error.hpp"

namespace ebca::internal {
namespace {

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

}  // namespace

Names joined(Names names, const Names& more) {
    names.insert(names.end(), more.begin(), more.end());
    return names;
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

TensorSpecs some(const TensorSpecs& tensors, const Names& names) {
    TensorSpecs out;
    for (const std::string& name : names) {
        auto found = tensors.find(name);
        if (found != tensors.end()) out.insert(*found);
    }
    return out;
}

}  // namespace ebca::internal
