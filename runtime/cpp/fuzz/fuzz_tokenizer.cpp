// The tokenizer on untrusted input: any tokenizer.json, then any text. It may throw only this
// library's errors.
//
// An input is the JSON, a zero byte (JSON has none), and the text. run.sh builds it.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "error.hpp"
#include "tokenizer/prompt_tokenizer.hpp"

using namespace ebca::internal;

namespace {

void check(bool holds) {
    if (!holds) __builtin_trap();
}

// Every token is inside the text, and so do its neighbours, in order.
void check_pieces(const Tokenizer& tokenizer, std::string_view text) {
    Encoding encoding = tokenizer.encode_with_offsets(text);
    check(encoding.offsets.size() == encoding.ids.size() && encoding.words.size() == encoding.ids.size());
    for (size_t i = 0; i < encoding.ids.size(); ++i) {
        check(encoding.offsets[i].begin < encoding.offsets[i].end && encoding.offsets[i].end <= text.size());
        check(i == 0 || encoding.offsets[i - 1].begin <= encoding.offsets[i].begin);
        check(i == 0 || encoding.words[i - 1] <= encoding.words[i]);
    }
}

void check_rows(const PromptTokenizer& tokenizer, const std::string& text) {
    Encoded encoded = tokenizer.encode({text, text});
    check(encoded.ids.size() == 2 * tokenizer.max_length() && encoded.truncated[0] == encoded.truncated[1]);
    auto found = tokenizer.find_words(text, {text.substr(0, text.find(' '))});
    for (size_t position : found[0]) check(position > 0 && position + 1 < tokenizer.max_length());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    std::string_view input(reinterpret_cast<const char*>(data), size);
    size_t end = input.find('\0');
    std::string_view json = input.substr(0, end);
    std::string text(end == input.npos ? std::string_view() : input.substr(end + 1));
    try {
        const Tokenizer tokenizer = Tokenizer::parse(json);
        check_pieces(tokenizer, text);
        auto special = [&](int64_t id) { return SpecialToken{tokenizer.id_to_token(id), id}; };
        check_rows(PromptTokenizer::from_json(json, {8, special(0), special(1), special(1)}), text);
    } catch (const Error&) {
    }
    return 0;
}
