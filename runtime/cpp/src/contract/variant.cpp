#include "contract/variant.hpp"

namespace ebca::internal {

const char* to_string(Variant variant) {
    switch (variant) {
        case Variant::attention:
            return "attention";
        case Variant::update:
            return "update";
        case Variant::update_masked:
            return "update_masked";
        case Variant::energies:
            return "energies";
        case Variant::attention_guided:
            return "attention_guided";
        case Variant::update_guided:
            return "update_guided";
        case Variant::update_masked_guided:
            return "update_masked_guided";
        default:
            return "energies_guided";
    }
}

bool is_guided(Variant variant) {
    return plain(variant) != variant;
}

Variant plain(Variant variant) {
    switch (variant) {
        case Variant::attention_guided:
            return Variant::attention;
        case Variant::update_guided:
            return Variant::update;
        case Variant::update_masked_guided:
            return Variant::update_masked;
        case Variant::energies_guided:
            return Variant::energies;
        default:
            return variant;
    }
}

Variant guided(Variant variant) {
    switch (plain(variant)) {
        case Variant::attention:
            return Variant::attention_guided;
        case Variant::update:
            return Variant::update_guided;
        case Variant::update_masked:
            return Variant::update_masked_guided;
        default:
            return Variant::energies_guided;
    }
}

}  // namespace ebca::internal
