// Prompts to padded rows of token ids, and the positions of their words; runtime/text/tokenizer.py is the same in
// Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "contract/special_token.hpp"
#include "error.hpp"
#include "tokenizer/tokenizer.hpp"
#include "tokenizer/weighted.hpp"

namespace ebca::internal {

// The manifest's `tokenizer.info`.
struct TokenizerInfo {
    int64_t model_max_length;  // T, tokens of a row with the start and the end token; 3 to 10,000
    SpecialToken bos, eos, pad;
    std::optional<SpecialToken> pad_2 = {};                   // in rows for a second text encoder
    std::map<int64_t, std::vector<int64_t>> expansions = {};  // token -> all that it stands for, itself first
};

// How prompts are read. Words and phrases that are looked for are always plain text.
struct Reading {
    bool weighting = false;  // brackets and BREAK are syntax, see tokenizer/weighted.hpp
    bool long_prompts =
        false;  // any number of chunks; else what does not fit is dropped, and BREAK separates words only
};

// Which text encoder rows are for: they differ in padding alone.
enum class ForEncoder { first, second };

// Token ids of n prompts, one row for each of their chunks, and what did not fit.
struct Encoded {
    std::vector<int64_t> ids;                      // [r, T], T = model_max_length
    std::vector<float> weights;                    // [r, T] factors of the embeddings
    std::vector<size_t> rows;                      // per prompt: number of its rows
    std::vector<std::string> truncated;            // per prompt: the text behind the last token that fitted, or ""
    std::vector<std::vector<std::string>> tokens;  // per prompt: entries from the first bos to the last eos
};

// Tokens [begin, end) of a prompt.
struct Chunk {
    size_t begin, end;
    size_t size() const { return end - begin; }
};

// The tokens of a prompt without start, end and padding.
struct Pieces {
    std::string text;  // plain
    std::vector<int64_t> ids;
    std::vector<float> weights;
    std::vector<unicode::Span> offsets;            // bytes of the text
    std::vector<std::pair<size_t, size_t>> words;  // number of the segment, and of the word in it
    std::vector<size_t> parts;                     // how many BREAKs stand before
    std::vector<Chunk> chunks;                     // at least one; without tokens that do not fit
    std::vector<size_t> positions;                 // of the tokens that fit, in all rows

    size_t kept() const { return chunks.back().end; }
};

// Where a phrase stands in a prompt.
struct Occurrences {
    std::vector<std::vector<size_t>> fitting;  // token positions (bos is 0) of each that fits, in order
    bool beyond = false;                       // whether there are others, beyond the last token that fits
};

// CLIP byte-pair encoding with start token, end token and padding. Immutable: safe to share between threads.
class PromptTokenizer {
  public:
    // Throws what Tokenizer::parse throws, and EngineError for an impossible `info`, or one that gives a token another
    // id than the vocabulary.
    static PromptTokenizer from_json(std::string_view tokenizer_json, const TokenizerInfo& info);

    // Each chunk of each prompt as bos, at most T - 2 tokens, eos, padding. Throws ParameterError for a prompt that is
    // not UTF-8, or has wrong syntax.
    Encoded encode(const std::vector<std::string>& prompts, const Reading& reading = {},
                   ForEncoder encoder = ForEncoder::first) const;

    // The number of rows of a prompt. Throws as `encode`.
    size_t rows(std::string_view prompt, const Reading& reading) const;

    // Per word or phrase: the positions (bos is 0), ascending, of every token of it, for all its occurrences in the
    // prompt. Whole words only ("cat" is not in "catalogue"); case and spacing do not count. Throws ParameterError for
    // a word that is missing, or only beyond the first T - 2 tokens.
    std::vector<std::vector<size_t>> find_words(std::string_view prompt, const std::vector<std::string>& words,
                                                const Reading& reading = {}) const;

    // Every occurrence of a phrase, which is matched as in `find_words`. Throws ParameterError for one without tokens.
    Occurrences occurrences(std::string_view prompt, std::string_view phrase, const Reading& reading = {}) const;

    // The token ids of a phrase: equal for phrases that are found in the same places.
    std::vector<int64_t> ids(std::string_view phrase) const;

    // T.
    size_t max_length() const { return static_cast<size_t>(info_.model_max_length); }
    const TokenizerInfo& info() const { return info_; }

  private:
    PromptTokenizer(Tokenizer tokenizer, const TokenizerInfo& info) : tokenizer_(std::move(tokenizer)), info_(info) {}

    size_t room() const { return max_length() - 2; }
    // The tokens of a text, each as all that it stands for, at its place in the text.
    Encoding expanded(std::string_view text) const;
    std::string entry(int64_t id) const;
    std::optional<int64_t> comma() const;
    Pieces pieces(std::string_view prompt, const Reading& reading) const;
    ParameterError not_found(const Pieces& pieces, std::string_view word, bool beyond) const;
    std::vector<size_t> find(const Pieces& pieces, std::string_view word) const;

    Tokenizer tokenizer_;
    TokenizerInfo info_;
};

}  // namespace ebca::internal
