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

void Piece::write(std::ostream& out) const {
    switch (kind_) {
        case Kind::text:
            out << text_;
            break;
        case Kind::character:
            out << character_;
            break;
        case Kind::real:
            out << real_;
            break;
        case Kind::natural:
            out << natural_;
            break;
        case Kind::integer:
            out << integer_;
            break;
        case Kind::other:
            other_.write(out, other_.value);
            break;
    }
}

std::string joined(std::initializer_list<Piece> pieces) {
    ClassicText out;
    for (const Piece& piece : pieces) piece.write(out);
    return out.str();
}

std::optional<double> to_number(std::string_view text) {
    // Not every standard library has from_chars for double.
    ClassicWords in{std::string(text)};
    double value = 0;
    if (!(in >> std::noskipws >> value) || in.peek() != ClassicWords::traits_type::eof()) return std::nullopt;
    return value;
}

}  // namespace ebca::internal
