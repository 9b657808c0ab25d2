// Whether what a manifest says about the models around the UNet, the schedulers and the plans fits together.
#pragma once

#include <string>

#include "contract/manifest.hpp"

namespace ebca::internal {

// All of them: EngineError for parts that are missing or contradict each other.
void check_kind(const Manifest& manifest);
void check_text(const Manifest& manifest);
void check_vae(const Manifest& manifest);
void check_schedulers(const Manifest& manifest);
void check_plans(const Manifest& manifest, const std::string& library, const LibraryPlans& plans);

}  // namespace ebca::internal
