// Values of the enums of ebca.h and their names: those of the constants after the prefix, in lower case.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "api/guard.hpp"
#include "ebca.h"

namespace ebca::internal {

struct NamedValue {
    const char* name;
    int64_t value;
};

template <size_t Count>
const char* name_of(const NamedValue (&table)[Count], int64_t value) {
    for (const NamedValue& entry : table) {
        if (entry.value == value) return entry.name;
    }
    return "unknown";
}

template <size_t Count, typename Value>
ebca_status from_name(const NamedValue (&table)[Count], const char* kind, const char* name, Value* value) {
    return guarded([&] {
        if (!value) throw rules::target_null("value");
        if (!name) throw rules::is_null("name");
        std::string names;
        for (const NamedValue& entry : table) {
            if (std::strcmp(entry.name, name) == 0) {
                *value = static_cast<Value>(entry.value);
                return;
            }
            names += (names.empty() ? "" : ", ") + std::string(entry.name);
        }
        throw rules::enum_name(name, kind, names);
    });
}

}  // namespace ebca::internal
