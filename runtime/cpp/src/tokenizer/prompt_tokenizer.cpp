#include "tokenizer/prompt_tokenizer.hpp"

#include <algorithm>
#include <cstdio>
#include <set>
#include <utility>

#include "contract/limits.hpp"
#include "error.hpp"
#include "parameters.hpp"

namespace ebca {
namespace {

// In quotes, with line ends and other control characters readable.
std::string quoted(std::string_view content) {
    char quote = content.find('\'') != content.npos && content.find('"') == content.npos ? '"' : '\'';
    std::string result(1, quote);
    for (char c : content) {
        auto code = static_cast<unsigned char>(c);
        if (c == quote || c == '\\') {
            result += {'\\', c};
        } else if (c == '\n' || c == '\r' || c == '\t') {
            result += {'\\', c == '\n' ? 'n' : c == '\r' ? 'r' : 't'};
        } else if (code < 0x20 || code == 0x7F) {
            char escaped[5];
            std::snprintf(escaped, sizeof escaped, "\\x%02x", static_cast<unsigned>(code));
            result += escaped;
        } else {
            result += c;
        }
    }
    return result + quote;
}

// Indices of the first tokens of all places where `needle` is in the encoding as whole words. The end needs no test:
// the last piece of a word (its entry ends in </w>) is never a middle piece.
std::vector<size_t> starts_of(const Encoding& encoding, const std::vector<int64_t>& needle) {
    std::vector<size_t> starts;
    for (size_t i = 0; i + needle.size() <= encoding.ids.size(); ++i) {
        bool starts_word = i == 0 || encoding.words[i] != encoding.words[i - 1];
        auto here = encoding.ids.begin() + static_cast<ptrdiff_t>(i);
        if (starts_word && std::equal(needle.begin(), needle.end(), here)) starts.push_back(i);
    }
    return starts;
}

// The manifest and the vocabulary must agree on its id.
void check_token(const Tokenizer& tokenizer, const char* name, const SpecialToken& special) {
    std::optional<int64_t> found = tokenizer.token_to_id(special.token);
    if (found == special.id) return;
    throw EngineError(
        text("the manifest gives ", name, " ", quoted(special.token), " the id ", special.id,
             ", and the vocabulary says ", found ? std::to_string(*found) : std::string("that there is no such token")),
        "copy the whole engine directory or export it again");
}

}  // namespace

PromptTokenizer PromptTokenizer::from_json(std::string_view tokenizer_json, const TokenizerInfo& info) {
    if (info.model_max_length < 3 || info.model_max_length > limits::tokens) {
        throw EngineError(
            text("the tokenizer's model_max_length is ", info.model_max_length, " instead of 3 to ", limits::tokens),
            "export the engine again");
    }
    Tokenizer tokenizer = Tokenizer::parse(tokenizer_json);
    check_token(tokenizer, "bos_token", info.bos);
    check_token(tokenizer, "eos_token", info.eos);
    check_token(tokenizer, "pad_token", info.pad);
    return PromptTokenizer(std::move(tokenizer), info);
}

Encoded PromptTokenizer::encode(const std::vector<std::string>& prompts) const {
    Encoded encoded;
    encoded.ids.reserve(prompts.size() * max_length());
    for (const std::string& prompt : prompts) {
        Encoding encoding = pieces(prompt);
        size_t used = std::min(encoding.ids.size(), room());
        std::vector<int64_t> row{info_.bos.id};
        row.insert(row.end(), encoding.ids.begin(), encoding.ids.begin() + static_cast<ptrdiff_t>(used));
        row.push_back(info_.eos.id);

        auto& tokens = encoded.tokens.emplace_back();
        for (int64_t id : row) tokens.push_back(entry(id));
        bool fits = encoding.ids.size() <= room();
        encoded.truncated.push_back(fits ? "" : prompt.substr(encoding.offsets[room()].begin));
        row.resize(max_length(), info_.pad.id);
        encoded.ids.insert(encoded.ids.end(), row.begin(), row.end());
    }
    return encoded;
}

std::vector<std::vector<size_t>> PromptTokenizer::find_words(std::string_view prompt,
                                                             const std::vector<std::string>& words) const {
    Encoding encoding = pieces(prompt);
    std::vector<std::vector<size_t>> found;
    for (const std::string& word : words) found.push_back(find(prompt, encoding, word));
    return found;
}

Occurrences PromptTokenizer::occurrences(std::string_view prompt, std::string_view phrase) const {
    std::vector<int64_t> needle = ids(phrase);
    Occurrences out;
    for (size_t start : starts_of(pieces(prompt), needle)) {
        if (start + needle.size() > room()) {
            out.beyond = true;
            continue;
        }
        std::vector<size_t>& positions = out.fitting.emplace_back();
        for (size_t i = 0; i < needle.size(); ++i) positions.push_back(start + 1 + i);
    }
    return out;
}

std::vector<int64_t> PromptTokenizer::ids(std::string_view phrase) const {
    std::vector<int64_t> found = pieces(phrase).ids;
    if (found.empty()) throw rules::word_without_tokens(quoted(phrase));
    return found;
}

std::vector<size_t> PromptTokenizer::find(std::string_view prompt, const Encoding& encoding,
                                          std::string_view word) const {
    std::vector<int64_t> needle = ids(word);
    std::vector<size_t> starts = starts_of(encoding, needle);
    std::set<size_t> positions;
    for (size_t start : starts) {
        // An occurrence cut by the length limit is no longer the word that was asked for.
        if (start + needle.size() > room()) continue;
        for (size_t i = 0; i < needle.size(); ++i) positions.insert(start + i + 1);
    }
    if (positions.empty()) throw not_found(prompt, encoding, word, !starts.empty());
    return {positions.begin(), positions.end()};
}

ParameterError PromptTokenizer::not_found(std::string_view prompt, const Encoding& encoding, std::string_view word,
                                          bool beyond) const {
    std::string tokens;
    for (size_t i = 0; i < std::min(encoding.ids.size(), room()); ++i) {
        auto [begin, end] = encoding.offsets[i];
        tokens += text(i ? ", " : "", i + 1, " ", quoted(prompt.substr(begin, end - begin)));
    }
    if (tokens.empty()) tokens = "none";
    return beyond ? rules::word_beyond_limit(quoted(word), room(), tokens)
                  : rules::word_not_in_prompt(quoted(word), tokens);
}

Encoding PromptTokenizer::pieces(std::string_view text) const {
    Encoding found = tokenizer_.encode_with_offsets(text);
    if (info_.expansions.empty()) return found;
    Encoding expanded;
    for (size_t i = 0; i < found.ids.size(); ++i) {
        auto several = info_.expansions.find(found.ids[i]);
        const size_t count = several == info_.expansions.end() ? 1 : several->second.size();
        for (size_t n = 0; n < count; ++n) {
            expanded.ids.push_back(several == info_.expansions.end() ? found.ids[i] : several->second[n]);
            expanded.offsets.push_back(found.offsets[i]);
            expanded.words.push_back(found.words[i]);
        }
    }
    return expanded;
}

std::string PromptTokenizer::entry(int64_t id) const {
    std::string token = tokenizer_.id_to_token(id);
    return token.empty() ? text("#", id) : token;
}

}  // namespace ebca
