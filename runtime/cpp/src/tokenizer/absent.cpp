// In place of the other files of this folder in a library that is built without the tokenizer.
#include "parameters.hpp"
#include "tokenizer/prompt_tokenizer.hpp"

namespace ebca::internal {

PromptTokenizer PromptTokenizer::from_json(std::string_view, const TokenizerInfo&) {
    throw rules::no_tokenizer();
}

Encoded PromptTokenizer::encode(const std::vector<std::string>&, const Reading&, ForEncoder) const {
    throw rules::no_tokenizer();
}

size_t PromptTokenizer::rows(std::string_view, const Reading&) const {
    throw rules::no_tokenizer();
}

std::vector<std::vector<size_t>> PromptTokenizer::find_words(std::string_view, const std::vector<std::string>&,
                                                             const Reading&) const {
    throw rules::no_tokenizer();
}

Occurrences PromptTokenizer::occurrences(std::string_view, std::string_view, const Reading&) const {
    throw rules::no_tokenizer();
}

std::vector<int64_t> PromptTokenizer::ids(std::string_view) const {
    throw rules::no_tokenizer();
}

}  // namespace ebca::internal
