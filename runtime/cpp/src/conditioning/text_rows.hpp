// Texts as rows of tokens, for one text encoder or two.
#pragma once

#include <cstddef>
#include <string>
#include <tuple>
#include <vector>

#include "engine.hpp"
#include "tokenizer/prompt_tokenizer.hpp"

namespace ebca::internal {

// What the first and the second text encoder read of a prompt; the same with one encoder.
struct TextPair {
    std::string first, second;

    bool operator==(const TextPair& other) const { return first == other.first && second == other.second; }
    bool operator<(const TextPair& other) const {
        return std::tie(first, second) < std::tie(other.first, other.second);
    }
};

// Rows of distinct texts, one after the other. Where one of them has fewer rows than another, there is a row of an
// empty text at the end, which lengthens it.
struct TextRows {
    struct Range {
        size_t begin, count;
    };

    TokenIds tokens;
    // [r,T] factors of the embeddings; those of the second encoder are empty without one.
    std::vector<float> weights, weights_2;
    std::vector<Range> of;  // per text: its rows
    size_t most = 0;        // rows of the longest text
    // Per text: what did not fit, or "".
    std::vector<std::string> truncated, truncated_2;
};

// fewest: rows that every text gets. Errors as of PromptTokenizer::encode.
TextRows text_rows(const PromptTokenizer& tokenizer, const std::vector<TextPair>& texts, bool two_encoders,
                   const Reading& reading, size_t fewest);

}  // namespace ebca::internal
