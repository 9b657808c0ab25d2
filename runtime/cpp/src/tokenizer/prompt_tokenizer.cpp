#include "tokenizer/prompt_tokenizer.hpp"

#include <algorithm>
#include <cstdio>
#include <set>
#include <utility>

#include "contract/limits.hpp"
#include "error.hpp"
#include "parameters.hpp"

namespace ebca::internal {
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

// Indices of the first tokens of all places where `needle` is in the prompt as whole words, without BREAK inside. The
// end needs no test: the last piece of a word (its entry ends in </w>) is never a middle piece.
std::vector<size_t> starts_of(const Pieces& pieces, const std::vector<int64_t>& needle) {
    std::vector<size_t> starts;
    for (size_t i = 0; i + needle.size() <= pieces.ids.size(); ++i) {
        bool starts_word = i == 0 || pieces.words[i] != pieces.words[i - 1];
        bool in_one_part = pieces.parts[i] == pieces.parts[i + needle.size() - 1];
        auto here = pieces.ids.begin() + static_cast<ptrdiff_t>(i);
        if (starts_word && in_one_part && std::equal(needle.begin(), needle.end(), here)) starts.push_back(i);
    }
    return starts;
}

// How far back a chunk may end behind a comma.
constexpr size_t kCommaWithin = 20;

// The tokens of each chunk. parts: how many there are; room: tokens of a chunk. runtime/text/chunks.py is the same in
// Python.
std::vector<Chunk> chunked(const Pieces& pieces, size_t parts, std::optional<int64_t> comma, size_t room) {
    std::vector<Chunk> chunks;
    size_t begin = 0, part = 0, count = pieces.ids.size();
    std::optional<size_t> last_comma;
    auto end_at = [&](size_t end) {
        chunks.push_back({begin, end});
        begin = end;
        last_comma.reset();
    };
    for (size_t i = 0; i < count; ++i) {
        for (; part < pieces.parts[i]; ++part) end_at(i);
        bool full = i - begin == room;
        if (pieces.ids[i] == comma) {
            last_comma = i;
        } else if (full && last_comma && i - *last_comma <= kCommaWithin) {
            end_at(*last_comma + 1);
            full = false;
        }
        if (full) end_at(i);
    }
    // What follows the last BREAK is a chunk only if there is something.
    for (; part + 1 < parts; ++part) end_at(count);
    if (begin < count || chunks.empty()) end_at(count);
    return chunks;
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
    if (info.pad_2) check_token(tokenizer, "pad_token_2", *info.pad_2);
    return PromptTokenizer(std::move(tokenizer), info);
}

Encoded PromptTokenizer::encode(const std::vector<std::string>& prompts, const Reading& reading,
                                ForEncoder encoder) const {
    Encoded encoded;
    int64_t padding = encoder == ForEncoder::second && info_.pad_2 ? info_.pad_2->id : info_.pad.id;
    encoded.ids.reserve(prompts.size() * max_length());
    for (const std::string& prompt : prompts) {
        const Pieces pieces = this->pieces(prompt, reading);
        size_t first = encoded.ids.size(), used = 0;
        for (const Chunk& chunk : pieces.chunks) {
            auto begin = static_cast<ptrdiff_t>(chunk.begin), end = static_cast<ptrdiff_t>(chunk.end);
            std::vector<int64_t> row{info_.bos.id};
            row.insert(row.end(), pieces.ids.begin() + begin, pieces.ids.begin() + end);
            row.push_back(info_.eos.id);
            std::vector<float> weights{1.0f};
            weights.insert(weights.end(), pieces.weights.begin() + begin, pieces.weights.begin() + end);
            used = encoded.ids.size() - first + row.size();
            row.resize(max_length(), padding);
            weights.resize(max_length(), 1.0f);
            encoded.ids.insert(encoded.ids.end(), row.begin(), row.end());
            encoded.weights.insert(encoded.weights.end(), weights.begin(), weights.end());
        }
        encoded.rows.push_back(pieces.chunks.size());
        auto& tokens = encoded.tokens.emplace_back();
        for (size_t i = first; i < first + used; ++i) tokens.push_back(entry(encoded.ids[i]));
        bool fits = pieces.kept() == pieces.ids.size();
        encoded.truncated.push_back(fits ? "" : pieces.text.substr(pieces.offsets[pieces.kept()].begin));
    }
    return encoded;
}

size_t PromptTokenizer::rows(std::string_view prompt, const Reading& reading) const {
    return pieces(prompt, reading).chunks.size();
}

std::vector<std::vector<size_t>> PromptTokenizer::find_words(std::string_view prompt,
                                                             const std::vector<std::string>& words,
                                                             const Reading& reading) const {
    const Pieces pieces = this->pieces(prompt, reading);
    std::vector<std::vector<size_t>> found;
    for (const std::string& word : words) found.push_back(find(pieces, word));
    return found;
}

Occurrences PromptTokenizer::occurrences(std::string_view prompt, std::string_view phrase,
                                         const Reading& reading) const {
    std::vector<int64_t> needle = ids(phrase);
    const Pieces pieces = this->pieces(prompt, reading);
    Occurrences out;
    for (size_t start : starts_of(pieces, needle)) {
        if (start + needle.size() > pieces.kept()) {
            out.beyond = true;
            continue;
        }
        auto first = pieces.positions.begin() + static_cast<ptrdiff_t>(start);
        out.fitting.emplace_back(first, first + static_cast<ptrdiff_t>(needle.size()));
    }
    return out;
}

std::vector<int64_t> PromptTokenizer::ids(std::string_view phrase) const {
    std::vector<int64_t> found = expanded(phrase).ids;
    if (found.empty()) throw rules::word_without_tokens(quoted(phrase));
    return found;
}

// The id of a comma, if the vocabulary has one that is no other character's.
std::optional<int64_t> PromptTokenizer::comma() const {
    std::vector<int64_t> found = tokenizer_.encode(",");
    if (found.size() != 1) return std::nullopt;
    std::string name = entry(found[0]);
    return name == ",</w>" || name == "," ? std::optional(found[0]) : std::nullopt;
}

// Text between weights is tokenized on its own.
Pieces PromptTokenizer::pieces(std::string_view prompt, const Reading& reading) const {
    Weighted read = reading.weighting ? parse_weights(prompt) : unweighted(prompt);
    Pieces out;
    for (size_t number = 0; number < read.segments.size(); ++number) {
        const Segment& segment = read.segments[number];
        Encoding encoding = expanded(std::string_view(read.plain).substr(segment.begin, segment.end - segment.begin));
        out.ids.insert(out.ids.end(), encoding.ids.begin(), encoding.ids.end());
        out.weights.resize(out.ids.size(), static_cast<float>(segment.weight));
        out.parts.resize(out.ids.size(), segment.part);
        for (unicode::Span span : encoding.offsets) {
            out.offsets.push_back({segment.begin + span.begin, segment.begin + span.end});
        }
        for (size_t word : encoding.words) out.words.emplace_back(number, word);
    }
    out.text = std::move(read.plain);
    out.chunks = reading.long_prompts ? chunked(out, read.parts, comma(), room())
                                      : std::vector<Chunk>{{0, std::min(out.ids.size(), room())}};
    if (static_cast<int64_t>(out.chunks.size()) > limits::prompt_chunks) {
        throw rules::prompt_chunks(out.chunks.size(), room(), limits::prompt_chunks);
    }
    for (size_t row = 0; row < out.chunks.size(); ++row) {
        for (size_t i = 0; i < out.chunks[row].size(); ++i) out.positions.push_back(row * max_length() + 1 + i);
    }
    return out;
}

std::vector<size_t> PromptTokenizer::find(const Pieces& pieces, std::string_view word) const {
    std::vector<int64_t> needle = ids(word);
    std::vector<size_t> starts = starts_of(pieces, needle);
    std::set<size_t> positions;
    for (size_t start : starts) {
        // An occurrence cut by the length limit is no longer the word that was asked for.
        if (start + needle.size() > pieces.kept()) continue;
        for (size_t i = 0; i < needle.size(); ++i) positions.insert(pieces.positions[start + i]);
    }
    if (positions.empty()) throw not_found(pieces, word, !starts.empty());
    return {positions.begin(), positions.end()};
}

ParameterError PromptTokenizer::not_found(const Pieces& pieces, std::string_view word, bool beyond) const {
    std::string tokens;
    for (size_t i = 0; i < std::min(pieces.positions.size(), room()); ++i) {
        auto [begin, end] = pieces.offsets[i];
        tokens += text(i ? ", " : "", pieces.positions[i], " ", quoted(pieces.text.substr(begin, end - begin)));
    }
    if (tokens.empty()) tokens = "none";
    return beyond ? rules::word_beyond_limit(quoted(word), room(), tokens)
                  : rules::word_not_in_prompt(quoted(word), tokens);
}

Encoding PromptTokenizer::expanded(std::string_view text) const {
    Encoding found = tokenizer_.encode_with_offsets(text);
    if (info_.expansions.empty()) return found;
    Encoding all;
    for (size_t i = 0; i < found.ids.size(); ++i) {
        auto several = info_.expansions.find(found.ids[i]);
        const size_t count = several == info_.expansions.end() ? 1 : several->second.size();
        for (size_t n = 0; n < count; ++n) {
            all.ids.push_back(several == info_.expansions.end() ? found.ids[i] : several->second[n]);
            all.offsets.push_back(found.offsets[i]);
            all.words.push_back(found.words[i]);
        }
    }
    return all;
}

std::string PromptTokenizer::entry(int64_t id) const {
    std::string token = tokenizer_.id_to_token(id);
    return token.empty() ? text("#", id) : token;
}

}  // namespace ebca::internal
