// What checks of a manifest are made of.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "contract/dims.hpp"
#include "contract/manifest.hpp"

namespace ebca::internal {

using TensorSpecs = std::map<std::string, TensorSpec>;
using Names = std::vector<std::string>;

Names joined(Names names, const Names& more);

// A shape from the texts and numbers of its dimensions.
template <class... Parts>
std::vector<Dim> shape(const Parts&... parts) {
    return {parse_dim(parts)...};
}

TensorSpec floats(std::vector<Dim> shape);

// EngineError for a path that leaves the directory.
void check_path(const std::string& path);

// EngineError for a file, or a component, that there is not. who: needs it.
void need_file(const Manifest& manifest, const std::string& file, const std::string& who);
const Component& need_component(const Manifest& manifest, const std::string& name, const std::string& who);

// EngineError unless both have the same names, dtypes and shapes.
void check_tensors(const std::string& who, const TensorSpecs& given, const TensorSpecs& expected);

// Those of these names that there are.
TensorSpecs some(const TensorSpecs& tensors, const Names& names);

}  // namespace ebca::internal
