// The forms of the energy attention op.
#pragma once

namespace ebca {

// Each variant computes what the one before computes and more.
enum class Variant { attention, update, update_masked };

// As the manifest names it.
const char* to_string(Variant variant);

}  // namespace ebca
