#include "backends/packed_numbers.hpp"

#include <cstddef>
#include <optional>

namespace ebca::internal {
namespace {

constexpr size_t kPackedAlignment = 64;

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

struct Span {
    size_t begin, end;
};

// A number at `at`, whose digits may be grouped by single characters.
std::optional<Span> number_at(const std::string& model, size_t at) {
    Span found{at, at};
    auto digit = [&](size_t i) { return i < model.size() && is_digit(model[i]); };
    if (!digit(at)) return std::nullopt;
    while (digit(found.end)) {
        ++found.end;
        bool grouped = found.end < model.size() && model[found.end] != ';' && model[found.end] != '|';
        if (grouped && !is_digit(model[found.end]) && digit(found.end + 1)) ++found.end;
    }
    return found;
}

// What follows a bar: "offset;length;digit".
struct Packed {
    Span offset, length;
};

std::optional<Packed> packed_at(const std::string& model, size_t bar) {
    auto is = [&](size_t i, char c) { return i < model.size() && model[i] == c; };
    auto offset = number_at(model, bar + 1);
    if (!offset || !is(offset->end, ';')) return std::nullopt;
    auto length = number_at(model, offset->end + 1);
    if (!length || !is(length->end, ';')) return std::nullopt;
    if (length->end + 1 >= model.size() || !is_digit(model[length->end + 1])) return std::nullopt;
    return Packed{*offset, *length};
}

// Digits move to the end of the number, zeros fill up its beginning.
bool ungroup(std::string& model, Span number) {
    size_t to = number.end;
    for (size_t from = number.end; from-- > number.begin;) {
        if (is_digit(model[from])) model[--to] = model[from];
    }
    for (size_t i = number.begin; i < to; ++i) model[i] = '0';
    return to > number.begin;
}

template <typename Visit>
void each_packed(const std::string& model, Visit visit) {
    for (size_t bar = model.find('|'); bar != model.npos; bar = model.find('|', bar + 1)) {
        if (auto packed = packed_at(model, bar)) visit(*packed);
    }
}

}  // namespace

bool ungroup_packed_numbers(std::string& model) {
    bool changed = false;
    each_packed(model, [&](const Packed& packed) {
        // The key ends with a digit, as what is said of another weight does: other bytes are not taken for it.
        if (packed.offset.begin < 2 || !is_digit(model[packed.offset.begin - 2])) return;
        for (Span number : {packed.offset, packed.length}) changed |= ungroup(model, number);
    });
    return changed;
}

bool packed_weights_are_aligned(const std::string& model) {
    bool aligned = true;
    each_packed(model, [&](const Packed& packed) {
        size_t remainder = 0;
        for (size_t i = packed.offset.begin; i < packed.offset.end; ++i) {
            if (!is_digit(model[i])) continue;
            remainder = (remainder * 10 + static_cast<size_t>(model[i] - '0')) % kPackedAlignment;
        }
        aligned &= remainder == 0;
    });
    return aligned;
}

}  // namespace ebca::internal
