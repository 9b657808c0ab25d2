#include "numerals.hpp"

#include <locale>

namespace ebca::internal {

ClassicText::ClassicText() {
    imbue(std::locale::classic());
    exceptions(std::ios_base::badbit);
}

ClassicWords::ClassicWords(const std::string& words) : std::istringstream(words) {
    imbue(std::locale::classic());
    exceptions(std::ios_base::badbit);
}

std::optional<double> to_number(std::string_view text) {
    // Not every standard library has from_chars for double.
    ClassicWords in{std::string(text)};
    double value = 0;
    if (!(in >> std::noskipws >> value) || in.peek() != ClassicWords::traits_type::eof()) return std::nullopt;
    return value;
}

}  // namespace ebca::internal
