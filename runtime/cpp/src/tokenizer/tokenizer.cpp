#include "tokenizer/tokenizer.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "error.hpp"

namespace ebca::internal {
namespace {

using unicode::CharClass;
using unicode::Text;

const std::u32string_view kSpecialTokens[] = {U"<|startoftext|>", U"<|endoftext|>"};
const std::u32string_view kContractions[] = {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"};

bool starts_with(const Text& text, size_t begin, size_t end, std::u32string_view prefix) {
    if (end - begin < prefix.size()) return false;
    for (size_t i = 0; i < prefix.size(); ++i) {
        if (text[begin + i].value != prefix[i]) return false;
    }
    return true;
}

// Length of the first of these that text[begin, end) starts with, or 0.
template <size_t n>
size_t match(const Text& text, size_t begin, size_t end, const std::u32string_view (&candidates)[n]) {
    for (std::u32string_view candidate : candidates) {
        if (starts_with(text, begin, end, candidate)) return candidate.size();
    }
    return 0;
}

// End of the run of characters of one class that starts at `begin`.
size_t end_of_run(const Text& text, size_t begin, size_t end) {
    CharClass kind = unicode::char_class(text[begin].value);
    size_t i = begin + 1;
    while (i < end && unicode::char_class(text[i].value) == kind) ++i;
    return i;
}

}  // namespace

Tokenizer Tokenizer::parse(std::string_view tokenizer_json) {
    return Tokenizer(parse_tokenizer_json(tokenizer_json));
}

Tokenizer::Tokenizer(TokenizerJson json)
    : normalizers_(std::move(json.normalizers)),
      split_special_(json.split_special),
      use_regex_(json.use_regex),
      model_(std::move(json.model)) {
    for (const AddedTokenJson& token : json.added_tokens) {
        added_ids_[token.content] = token.id;
        Text content = unicode::decode(token.content);
        if (token.normalized) content = normalize(std::move(content));
        std::u32string characters;
        std::string& entry = added_entries_[token.id];
        for (const unicode::Char& character : content) {
            characters += character.value;
            unicode::append_utf8(entry, character.value);
        }
        auto& same_start = (token.normalized ? normalized_tokens_ : raw_tokens_)[characters.front()];
        same_start.push_back({std::move(characters), token.id});
    }
    for (AddedTokens* tokens : {&raw_tokens_, &normalized_tokens_}) {
        for (auto& [first, same_start] : *tokens) {
            std::stable_sort(same_start.begin(), same_start.end(), [](const AddedToken& a, const AddedToken& b) {
                return a.content.size() > b.content.size();
            });
        }
    }
}

Encoding Tokenizer::encode_with_offsets(std::string_view utf8) const {
    Encoding encoding;
    size_t words = 0;
    const Text given = unicode::decode(utf8);
    for (const Piece& part : extract(given, raw_tokens_)) {
        if (part.id) {
            append_word(given, part, words++, encoding);
            continue;
        }
        auto at = [&](size_t i) { return given.begin() + static_cast<ptrdiff_t>(i); };
        const Text normalized = normalize({at(part.begin), at(part.end)});
        for (const Piece& piece : extract(normalized, normalized_tokens_)) {
            for (const Piece& word : split(normalized, piece)) append_word(normalized, word, words++, encoding);
        }
    }
    return encoding;
}

std::string Tokenizer::id_to_token(int64_t id) const {
    if (auto added = added_entries_.find(id); added != added_entries_.end()) return added->second;
    if (id < 0 || id > std::numeric_limits<uint32_t>::max()) return "";
    const std::string* entry = model_.entry(static_cast<uint32_t>(id));
    return entry ? *entry : "";
}

std::optional<int64_t> Tokenizer::token_to_id(const std::string& token) const {
    if (auto added = added_ids_.find(token); added != added_ids_.end()) return added->second;
    return model_.find(token);
}

Text Tokenizer::normalize(Text text) const {
    for (Normalizer normalizer : normalizers_) {
        switch (normalizer) {
            case Normalizer::nfc:
                text = unicode::nfc(text);
                break;
            case Normalizer::collapse_spaces:
                text = unicode::collapse_spaces(text);
                break;
            case Normalizer::lowercase:
                text = unicode::lower_case(text);
                break;
        }
    }
    return text;
}

// The added tokens of a text and the text between them.
std::vector<Tokenizer::Piece> Tokenizer::extract(const Text& text, const AddedTokens& tokens) {
    std::vector<Piece> pieces;
    size_t between = 0;
    for (size_t i = 0; i < text.size();) {
        const AddedToken* found = find(text, i, tokens);
        if (!found) {
            ++i;
            continue;
        }
        if (between < i) pieces.push_back({between, i, std::nullopt});
        pieces.push_back({i, i + found->content.size(), found->id});
        between = i += found->content.size();
    }
    if (between < text.size()) pieces.push_back({between, text.size(), std::nullopt});
    return pieces;
}

// The longest added token at `begin` of the text, or null.
const Tokenizer::AddedToken* Tokenizer::find(const Text& text, size_t begin, const AddedTokens& tokens) {
    auto same_start = tokens.find(text[begin].value);
    if (same_start == tokens.end()) return nullptr;
    for (const AddedToken& token : same_start->second) {
        if (starts_with(text, begin, text.size(), token.content)) return &token;
    }
    return nullptr;
}

// The words of a piece, by the pattern of Split and then that of ByteLevel; spaces are left out. A word is a
// contraction's end, a run of letters, one number, or a run of any other characters except spaces.
std::vector<Tokenizer::Piece> Tokenizer::split(const Text& text, Piece piece) const {
    if (piece.id) return {piece};
    std::vector<Piece> words;
    auto add = [&](size_t begin, size_t end) { words.push_back({begin, end, std::nullopt}); };
    for (size_t i = piece.begin; i < piece.end;) {
        size_t special = split_special_ ? match(text, i, piece.end, kSpecialTokens) : 0;
        size_t contraction = special ? 0 : match(text, i, piece.end, kContractions);
        size_t end = i + special + contraction;
        if (special && use_regex_) {
            for (size_t begin = i; begin < end;) {
                size_t run = end_of_run(text, begin, end);
                add(begin, run);
                begin = run;
            }
        } else if (end != i) {
            add(i, end);
        } else {
            CharClass kind = unicode::char_class(text[i].value);
            end = kind == CharClass::number ? i + 1 : end_of_run(text, i, piece.end);
            if (kind != CharClass::space) add(i, end);
        }
        i = end;
    }
    return words;
}

void Tokenizer::append_word(const Text& text, Piece word, size_t number, Encoding& encoding) const {
    auto append = [&](int64_t id, size_t first, size_t last) {
        encoding.ids.push_back(id);
        encoding.offsets.push_back({text[first].source.begin, text[last].source.end});
        encoding.words.push_back(number);
    };
    if (word.id) {
        append(*word.id, word.begin, word.end - 1);
        return;
    }
    std::string bytes;
    std::vector<size_t> characters;  // per byte, the character that it is a part of
    for (size_t i = word.begin; i < word.end; ++i) {
        unicode::append_utf8(bytes, text[i].value);
        characters.resize(bytes.size(), i);
    }
    for (const BytePairEncoding::Token& token : model_.encode(bytes)) {
        append(token.id, characters[token.begin], characters[token.end - 1]);
    }
}

}  // namespace ebca::internal
