#include "contract/variant.hpp"

namespace ebca {

const char* to_string(Variant variant) {
    switch (variant) {
        case Variant::attention:
            return "attention";
        case Variant::update:
            return "update";
        default:
            return "update_masked";
    }
}

}  // namespace ebca
