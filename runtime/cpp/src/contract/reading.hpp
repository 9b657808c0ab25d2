// From the members of a manifest.json to its structs: every value is read with its type and range. Whether the parts
// fit each other is the matter of validation.hpp. engines/contract/reading.py is the same in Python.
#pragma once

#include "contract/entry.hpp"
#include "contract/manifest.hpp"

namespace ebca::internal {

// EngineError for a value of the wrong type or range.
Manifest read_manifest(const Entry& document);

}  // namespace ebca::internal
