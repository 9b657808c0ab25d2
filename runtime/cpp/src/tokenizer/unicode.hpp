// Unicode as the `tokenizers` library sees it: UTF-8, normal form C, lower case, classes of characters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ebca::internal::unicode {

enum class CharClass : uint8_t { other, letter, number, space };  // other: unassigned code points too

// Bytes [begin, end) of the text as it was given.
struct Span {
    size_t begin, end;
};

// A character and the bytes that it stands for. Where several characters became one, it stands for the first; where one
// became several, each stands for all of it.
struct Char {
    char32_t value;
    Span source;
};

using Text = std::vector<Char>;

CharClass char_class(char32_t character);

// Throws ParameterError, which gives the position, for bytes that are not UTF-8 (surrogates and overlong forms
// neither).
Text decode(std::string_view utf8);
void append_utf8(std::string& utf8, char32_t character);

Text nfc(const Text& text);
Text lower_case(const Text& text);
// Each run of white space becomes one space.
Text collapse_spaces(const Text& text);

}  // namespace ebca::internal::unicode
