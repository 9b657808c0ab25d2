#include "tokenizer/byte_pair_encoding.hpp"

#include <queue>

#include "error.hpp"
#include "tokenizer/unicode.hpp"

namespace ebca::internal {
namespace {

constexpr size_t kNone = SIZE_MAX;

// A part of a word while it is being merged; its neighbours by index.
struct Symbol {
    uint32_t id;
    size_t begin, end;
    size_t previous, next;
    bool merged_away = false;
};

struct Candidate {
    uint32_t rank;
    size_t left;
    uint32_t id;

    // For a queue that returns the lowest rank first, and the leftmost of those.
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
};

// The printable character that a byte has in vocabularies: printable bytes are themselves, the others follow from
// U+0100 on.
std::string byte_symbol(int byte) {
    auto printable = [](int b) { return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE; };
    int hidden = 0;
    for (int b = 0; b < byte; ++b) hidden += !printable(b);
    std::string symbol;
    unicode::append_utf8(symbol, static_cast<char32_t>(printable(byte) ? byte : 0x100 + hidden));
    return symbol;
}

uint64_t pair_key(uint32_t left, uint32_t right) {
    return static_cast<uint64_t>(left) << 32 | right;
}

}  // namespace

BytePairEncoding::BytePairEncoding(BytePairEncodingJson json) {
    auto find = [&](const std::string& entry) {
        auto found = json.vocabulary.find(entry);
        return found != json.vocabulary.end() ? std::optional(found->second) : std::nullopt;
    };
    auto of_merge = [&](const std::string& entry) {
        if (auto id = find(entry)) return *id;
        throw EngineError(text("the tokenizer merges '", entry, "', which is not in its vocabulary"), "export again");
    };
    auto of_byte = [&](const std::string& entry) {
        if (auto id = find(entry)) return *id;
        if (auto unknown = json.unk_token ? find(*json.unk_token) : std::nullopt) return *unknown;
        throw EngineError(
            text("the tokenizer's vocabulary has no entry '", entry, "' for a byte, and none for unknown ones"),
            "export again");
    };

    for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
        std::string symbol = byte_symbol(static_cast<int>(byte));
        byte_ids_[byte] = of_byte(symbol);
        last_byte_ids_[byte] = of_byte(symbol + json.end_of_word_suffix);
    }

    merges_.reserve(json.merges.size());
    for (size_t rank = 0; rank < json.merges.size(); ++rank) {
        const auto& [left, right] = json.merges[rank];
        uint64_t key = pair_key(of_merge(left), of_merge(right));
        merges_[key] = {static_cast<uint32_t>(rank), of_merge(left + right)};  // of equal pairs, the last one counts
    }

    entries_.reserve(json.vocabulary.size());
    for (const auto& [entry, id] : json.vocabulary) entries_.emplace(id, entry);
}

const BytePairEncoding::Merge* BytePairEncoding::find_merge(uint32_t left, uint32_t right) const {
    auto found = merges_.find(pair_key(left, right));
    return found != merges_.end() ? &found->second : nullptr;
}

const std::string* BytePairEncoding::entry(uint32_t id) const {
    auto found = entries_.find(id);
    return found != entries_.end() ? &found->second : nullptr;
}

std::optional<uint32_t> BytePairEncoding::find(const std::string& entry) const {
    for (const auto& [id, name] : entries_) {
        if (name == entry) return id;
    }
    return std::nullopt;
}

std::vector<BytePairEncoding::Token> BytePairEncoding::encode(std::string_view word) const {
    std::vector<Symbol> symbols;
    symbols.reserve(word.size());
    for (size_t i = 0; i < word.size(); ++i) {
        bool last = i + 1 == word.size();
        uint32_t id = (last ? last_byte_ids_ : byte_ids_)[static_cast<uint8_t>(word[i])];
        symbols.push_back({id, i, i + 1, i ? i - 1 : kNone, last ? kNone : i + 1});
    }

    std::priority_queue<Candidate> queue;
    auto consider = [&](size_t left) {
        if (left == kNone || symbols[left].next == kNone) return;
        const Merge* merge = find_merge(symbols[left].id, symbols[symbols[left].next].id);
        if (merge) queue.push({merge->rank, left, merge->id});
    };
    for (size_t i = 0; i < symbols.size(); ++i) consider(i);

    while (!queue.empty()) {
        Candidate best = queue.top();
        queue.pop();
        Symbol& left = symbols[best.left];
        if (left.merged_away || left.next == kNone) continue;
        Symbol& right = symbols[left.next];
        // Either of the two may have been merged since the candidate was found.
        const Merge* merge = find_merge(left.id, right.id);
        if (!merge || merge->id != best.id) continue;
        left.id = best.id;
        left.end = right.end;
        left.next = right.next;
        right.merged_away = true;
        if (left.next != kNone) symbols[left.next].previous = best.left;
        consider(left.previous);
        consider(best.left);
    }

    std::vector<Token> tokens;
    for (const Symbol& symbol : symbols) {
        if (!symbol.merged_away) tokens.push_back({symbol.id, symbol.begin, symbol.end});
    }
    return tokens;
}

}  // namespace ebca::internal
