// Whether what a manifest says fits together.
#pragma once

#include "contract/manifest.hpp"

namespace ebca::internal {

// EngineError for parts that are missing or contradict each other, and for paths that leave the directory.
void validate(const Manifest& manifest);

}  // namespace ebca::internal
