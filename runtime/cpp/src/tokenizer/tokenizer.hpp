// Text to token ids, exactly those of the `tokenizers` library for the same tokenizer.json without special tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/byte_pair_encoding.hpp"
#include "tokenizer/tokenizer_json.hpp"
#include "tokenizer/unicode.hpp"

namespace ebca::internal {

// The tokens of one text, in order. The three vectors have one entry per token.
struct Encoding {
    std::vector<int64_t> ids;
    std::vector<unicode::Span> offsets;  // bytes of the text as it was given
    std::vector<size_t> words;           // number of the word that the token is a part of; ascending
};

// The pipeline of a CLIP tokenizer.json: added tokens, normalizers, split into words, byte-pair encoding. Immutable:
// safe to share between threads.
class Tokenizer {
  public:
    // Reads the components that the JSON names. Throws EngineError for text that is not a tokenizer JSON,
    // UnsupportedError for a component or setting that CLIP tokenizers do not have; the message names it.
    static Tokenizer parse(std::string_view tokenizer_json);

    // Token ids of UTF-8 text, without start token, end token and padding, not truncated; in time about linear in the
    // text. Throws ParameterError for bytes that are not UTF-8.
    std::vector<int64_t> encode(std::string_view utf8) const { return encode_with_offsets(utf8).ids; }
    Encoding encode_with_offsets(std::string_view utf8) const;

    // The vocabulary's entry, or the added token as it is looked for; "" for an id that has none.
    std::string id_to_token(int64_t id) const;

    // The id of an added token, or of an entry of the vocabulary; none if there is no such token.
    std::optional<int64_t> token_to_id(const std::string& token) const;

  private:
    // A token that is found in the text before it is split into words.
    struct AddedToken {
        std::u32string content;
        int64_t id;
    };
    // By first character, longest first: the longest token that fits is taken.
    using AddedTokens = std::unordered_map<char32_t, std::vector<AddedToken>>;

    // Characters [begin, end) of a text, and the token that they are, if they are one.
    struct Piece {
        size_t begin, end;
        std::optional<int64_t> id;
    };

    explicit Tokenizer(TokenizerJson json);

    unicode::Text normalize(unicode::Text text) const;
    static std::vector<Piece> extract(const unicode::Text& text, const AddedTokens& tokens);
    static const AddedToken* find(const unicode::Text& text, size_t begin, const AddedTokens& tokens);
    std::vector<Piece> split(const unicode::Text& text, Piece piece) const;
    void append_word(const unicode::Text& text, Piece word, size_t number, Encoding& encoding) const;

    std::vector<Normalizer> normalizers_;
    bool split_special_;
    bool use_regex_;
    BytePairEncoding model_;
    AddedTokens raw_tokens_;         // found in the text as given
    AddedTokens normalized_tokens_;  // found in the normalized text
    std::unordered_map<int64_t, std::string> added_entries_;
    std::unordered_map<std::string, int64_t> added_ids_;
};

}  // namespace ebca::internal
