// Numbers in texts, read in the same way wherever the host is: no locale matters.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "numerals.hpp"

namespace ebca::internal {

// The number that all of a text is; empty if it is none, or beyond the range of double.
inline std::optional<double> to_number(std::string_view text) {
    // Not every standard library has from_chars for double.
    ClassicWords in{std::string(text)};
    double value = 0;
    if (!(in >> std::noskipws >> value) || in.peek() != ClassicWords::traits_type::eof()) return std::nullopt;
    return value;
}

}  // namespace ebca::internal
