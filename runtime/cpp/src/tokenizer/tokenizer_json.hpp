// tokenizer.json as plain data: the parts that a CLIP tokenizer has, everything else refused by name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/byte_pair_encoding.hpp"

namespace ebca::internal {

enum class Normalizer {
    nfc,
    collapse_spaces,  // Replace of \s+ by one space
    lowercase,
};

struct AddedTokenJson {
    std::string content;  // UTF-8, not empty
    int64_t id;
    bool normalized;  // found in the normalized text, in its own normalized form
};

struct TokenizerJson {
    std::vector<Normalizer> normalizers;
    bool split_special;  // the Split pattern keeps <|startoftext|> and <|endoftext|> together
    bool use_regex;      // ByteLevel splits once more, which only takes those two apart
    BytePairEncodingJson model;
    std::vector<AddedTokenJson> added_tokens;
};

// Throws EngineError, which names the part that is missing or wrong, and UnsupportedError for a kind of component or a
// setting that CLIP tokenizers do not have.
// Truncation, padding and decoder are not read: the runtime sets its own limits and decodes nothing.
TokenizerJson parse_tokenizer_json(std::string_view text);

}  // namespace ebca::internal
