// Byte-level byte-pair encoding: the bytes of a word to the vocabulary's tokens.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ebca::internal {

struct BytePairEncodingJson {
    std::unordered_map<std::string, uint32_t> vocabulary;     // entry to id
    std::vector<std::pair<std::string, std::string>> merges;  // by rank
    std::optional<std::string> unk_token;                     // stands for a byte that has no entry
    std::string end_of_word_suffix;                           // of the entries that end a word, "" for none
};

class BytePairEncoding {
  public:
    struct Token {
        uint32_t id;
        size_t begin, end;  // bytes of the word
    };

    // Throws EngineError for a merge of entries that the vocabulary lacks, and for bytes that no entry stands for.
    explicit BytePairEncoding(BytePairEncodingJson json);

    // O(n log n) in the bytes of the word.
    std::vector<Token> encode(std::string_view word) const;

    // The entry, null for an id that has none.
    const std::string* entry(uint32_t id) const;

    // Its id; none if there is no such entry. Looks at all of them.
    std::optional<uint32_t> find(const std::string& entry) const;

  private:
    struct Merge {
        uint32_t rank;
        uint32_t id;  // of the merged pair
    };

    const Merge* find_merge(uint32_t left, uint32_t right) const;

    std::array<uint32_t, 256> byte_ids_;       // of a byte inside a word
    std::array<uint32_t, 256> last_byte_ids_;  // of the byte that ends it
    std::unordered_map<uint64_t, Merge> merges_;
    std::unordered_map<uint32_t, std::string> entries_;
};

}  // namespace ebca::internal
