// The forms of the energy attention op.
#pragma once

namespace ebca::internal {

// Each of the first four computes what the one before computes and more; `energies` also returns the energies. The
// guided ones also add a bias per group of tokens to the scores, and return the groups' attention maps.
enum class Variant {
    attention,
    update,
    update_masked,
    energies,
    attention_guided,
    update_guided,
    update_masked_guided,
    energies_guided
};

// As the manifest names it.
const char* to_string(Variant variant);

bool is_guided(Variant variant);
// The same without guidance, or with it.
Variant plain(Variant variant);
Variant guided(Variant variant);

}  // namespace ebca::internal
