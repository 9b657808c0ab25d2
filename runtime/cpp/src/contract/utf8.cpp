#include "contract/utf8.hpp"

#include <cstdint>

namespace ebca::internal {

Utf8Char utf8_at(std::string_view text, size_t begin) {
    auto byte = [&](size_t i) { return static_cast<uint8_t>(text[begin + i]); };
    uint8_t lead = byte(0);
    size_t length = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
    bool valid = length != 0 && length <= text.size() - begin;
    char32_t value = length == 1 ? lead : lead & (0x7F >> length);
    for (size_t i = 1; valid && i < length; ++i) {
        valid = (byte(i) & 0xC0) == 0x80;
        value = value << 6 | (byte(i) & 0x3F);
    }
    constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (!valid || value < kSmallest[length] || value > 0x10FFFF || value - 0xD800 < 0x800) return {0, 0};
    return {value, length};
}

std::string readable(std::string text) {
    for (size_t begin = 0; begin < text.size();) {
        size_t length = utf8_at(text, begin).length;
        if (length == 0) {
            for (char& c : text) {
                if (static_cast<unsigned char>(c) > 0x7e) c = '?';
            }
            return text;
        }
        begin += length;
    }
    return text;
}

}  // namespace ebca::internal
