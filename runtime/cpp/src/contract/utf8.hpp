// UTF-8, character by character.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace ebca::internal {

// A character and its number of bytes; 0 bytes: they are not UTF-8 (surrogates and overlong forms are not either).
struct Utf8Char {
    char32_t value;
    size_t length;
};

// The character that begins at byte `begin` of the text.
Utf8Char utf8_at(std::string_view text, size_t begin);

// The text, or, if it is not UTF-8, the same with a question mark for every byte that is not ASCII.
std::string readable(std::string text);

}  // namespace ebca::internal
