#include "tokenizer/unicode.hpp"

#include <algorithm>
#include <utility>

#include "contract/utf8.hpp"
#include "error.hpp"
#include "tokenizer/unicode_tables.hpp"

namespace ebca::internal::unicode {
namespace {

constexpr char32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
constexpr char32_t kLeadCount = 19, kVowelCount = 21, kTailCount = 28;  // tail 0 is none
constexpr char32_t kSyllableCount = kLeadCount * kVowelCount * kTailCount;

// The row of a table of ranges that contains a character, or null.
template <typename Row>
const Row* find_range(const Table<Row>& table, char32_t c) {
    auto row = std::lower_bound(table.begin(), table.end(), c, [](const Row& r, char32_t v) { return r.last < v; });
    return row != table.end() && row->first <= c ? row : nullptr;
}

uint8_t combining_class(char32_t c) {
    const CombiningRange* row = find_range(combining_ranges, c);
    return row ? row->combining_class : 0;
}

// The composition of two characters, or 0.
char32_t compose(char32_t left, char32_t right) {
    if (left - kLeads < kLeadCount && right - kVowels < kVowelCount) {
        return kSyllables + ((left - kLeads) * kVowelCount + (right - kVowels)) * kTailCount;
    }
    bool open_syllable = left - kSyllables < kSyllableCount && (left - kSyllables) % kTailCount == 0;
    if (open_syllable && right - kTails - 1 < kTailCount - 1) return left + (right - kTails);

    auto before = [](const Composition& row, std::pair<char32_t, char32_t> pair) {
        return std::pair(row.left, row.right) < pair;
    };
    auto row = std::lower_bound(compositions.begin(), compositions.end(), std::pair(left, right), before);
    return row != compositions.end() && row->left == left && row->right == right ? row->composed : 0;
}

template <typename Push>
void decompose(char32_t c, const Push& push) {
    if (c - kSyllables < kSyllableCount) {
        char32_t index = c - kSyllables;
        push(kLeads + index / (kVowelCount * kTailCount));
        push(kVowels + index % (kVowelCount * kTailCount) / kTailCount);
        if (index % kTailCount) push(kTails + index % kTailCount);
        return;
    }
    auto before = [](const Decomposition& row, char32_t v) { return row.composed < v; };
    auto row = std::lower_bound(decompositions.begin(), decompositions.end(), c, before);
    if (row == decompositions.end() || row->composed != c) {
        push(c);
        return;
    }
    decompose(row->left, push);
    if (row->right) decompose(row->right, push);
}

// A character of a changed text. `consumed` is how many characters it replaces: 0 for one that was inserted,
// 1 for one that was replaced, more if the following ones were removed.
struct Change {
    char32_t value;
    ptrdiff_t consumed;
    uint8_t combining_class = 0;
};

// Gives changed characters their place in the original. `changes` consume all of `text`.
Text with_places(const Text& text, const std::vector<Change>& changes) {
    Text result;
    result.reserve(changes.size());
    size_t next = 0;
    for (const Change& change : changes) {
        bool inserted = change.consumed <= 0;
        result.push_back({change.value, text[inserted && next ? next - 1 : next].source});
        if (!inserted) next += static_cast<size_t>(change.consumed);
    }
    return result;
}

// Decomposed, and marks sorted by combining class.
std::vector<Change> canonical_order(const Text& text) {
    std::vector<Change> changes;
    changes.reserve(text.size());
    size_t pending = 0;  // start of the marks that are not sorted yet
    auto sort_pending = [&] {
        std::stable_sort(changes.begin() + static_cast<ptrdiff_t>(pending), changes.end(),
                         [](const Change& a, const Change& b) { return a.combining_class < b.combining_class; });
    };
    for (const Char& character : text) {
        ptrdiff_t consumed = 1;
        decompose(character.value, [&](char32_t part) {
            uint8_t part_class = combining_class(part);
            if (part_class == 0) sort_pending();
            changes.push_back({part, consumed, part_class});
            if (part_class == 0) pending = changes.size();
            consumed = 0;
        });
    }
    sort_pending();
    return changes;
}

}  // namespace

CharClass char_class(char32_t character) {
    if (find_range(letters, character)) return CharClass::letter;
    if (find_range(numbers, character)) return CharClass::number;
    if (find_range(spaces, character)) return CharClass::space;
    return CharClass::other;
}

Text decode(std::string_view utf8) {
    Text text;
    text.reserve(utf8.size());
    for (size_t begin = 0; begin < utf8.size();) {
        auto [value, length] = utf8_at(utf8, begin);
        if (length == 0) {
            throw ParameterError(ebca::internal::text("the text is not valid UTF-8 at byte ", begin), "give UTF-8");
        }
        text.push_back({value, {begin, begin + length}});
        begin += length;
    }
    return text;
}

void append_utf8(std::string& utf8, char32_t character) {
    auto push = [&](char32_t byte) { utf8.push_back(static_cast<char>(byte)); };
    if (character < 0x80) {
        push(character);
        return;
    }
    if (character < 0x800) {
        push(0xC0 | character >> 6);
    } else {
        if (character < 0x10000) {
            push(0xE0 | character >> 12);
        } else {
            push(0xF0 | character >> 18);
            push(0x80 | (character >> 12 & 0x3F));
        }
        push(0x80 | (character >> 6 & 0x3F));
    }
    push(0x80 | (character & 0x3F));
}

// As in UAX #15: a mark composes with the starter before it unless one of its own or a higher class stands
// between.
Text nfc(const Text& text) {
    std::vector<Change> composed;
    composed.reserve(text.size());
    constexpr size_t kNone = SIZE_MAX;
    size_t starter = kNone;
    for (const Change& change : canonical_order(text)) {
        bool adjacent = starter != kNone && starter + 1 == composed.size();
        bool blocked = starter == kNone || (!adjacent && composed.back().combining_class >= change.combining_class);
        char32_t both = blocked ? 0 : compose(composed[starter].value, change.value);
        if (both) {
            composed[starter].value = both;
            composed[starter].consumed += change.consumed;
            continue;
        }
        if (change.combining_class == 0) starter = composed.size();
        composed.push_back(change);
    }
    return with_places(text, composed);
}

Text lower_case(const Text& text) {
    Text result;
    result.reserve(text.size());
    for (const Char& character : text) {
        char32_t c = character.value;
        if (c == 0x130) {  // capital i with dot: the only one that becomes two
            result.push_back({'i', character.source});
            result.push_back({0x307, character.source});
            continue;
        }
        const CaseRange* row = find_range(case_ranges, c);
        bool capital = row && (c - row->first) % row->stride == 0;
        result.push_back({capital ? c + static_cast<char32_t>(row->delta) : c, character.source});
    }
    return result;
}

Text collapse_spaces(const Text& text) {
    Text result;
    result.reserve(text.size());
    bool in_spaces = false;
    for (const Char& character : text) {
        bool space = find_range(spaces, character.value) != nullptr;
        if (space && in_spaces) {
            result.back().source = character.source;
        } else {
            result.push_back({space ? U' ' : character.value, character.source});
        }
        in_spaces = space;
    }
    return result;
}

}  // namespace ebca::internal::unicode
