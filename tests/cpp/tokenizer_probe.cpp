// Answers questions about a tokenizer on standard input, for test_tokenizer.py: many texts in one process.
// A message is a number of fields, each with its length before it (uint32, little end first). A question's first field
// is a command; an answer's is "ok", or "error" with the status and the message.

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "error.hpp"
#include "tokenizer/prompt_tokenizer.hpp"
#include "tokenizer/tokenizer.hpp"

using namespace ebca::internal;

namespace {

using Message = std::vector<std::string>;

std::optional<uint32_t> read_number() {
    unsigned char bytes[4];
    if (std::fread(bytes, 1, 4, stdin) != 4) return std::nullopt;
    return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | static_cast<uint32_t>(bytes[3]) << 24;
}

std::optional<Message> read_message() {
    std::optional<uint32_t> count = read_number();
    if (!count) return std::nullopt;
    Message message;
    while (message.size() < *count) {
        std::optional<uint32_t> size = read_number();
        if (!size) return std::nullopt;
        std::string field(*size, '\0');
        if (std::fread(field.data(), 1, field.size(), stdin) != field.size()) return std::nullopt;
        message.push_back(field);
    }
    return message;
}

void write_number(size_t number) {
    for (int shift = 0; shift < 32; shift += 8) std::putchar(static_cast<int>(number >> shift & 0xFF));
}

void write_message(const Message& message) {
    write_number(message.size());
    for (const std::string& field : message) {
        write_number(field.size());
        std::fwrite(field.data(), 1, field.size(), stdout);
    }
    std::fflush(stdout);
}

template <typename Numbers>
std::string joined(const Numbers& numbers) {
    std::string result;
    for (auto number : numbers) result += std::to_string(number) + " ";
    return result;
}

struct Probe {
    std::optional<Tokenizer> tokenizer;
    std::optional<PromptTokenizer> prompt_tokenizer;

    // tokenizer.json; model_max_length; id and text of bos, eos and pad
    Message load(const Message& question) {
        auto number = [&](size_t i) { return std::stoll(question.at(i)); };
        auto special = [&](size_t i) { return SpecialToken{question.at(i + 1), number(i)}; };
        TokenizerInfo info{number(2), special(3), special(5), special(7)};
        tokenizer = Tokenizer::parse(question.at(1));
        prompt_tokenizer = PromptTokenizer::from_json(question.at(1), info);
        return {};
    }

    // text -> ids, starts, ends, words
    Message pieces(const Message& question) const {
        Encoding encoding = tokenizer.value().encode_with_offsets(question.at(1));
        std::vector<size_t> starts, ends;
        for (unicode::Span span : encoding.offsets) {
            starts.push_back(span.begin);
            ends.push_back(span.end);
        }
        return {joined(encoding.ids), joined(starts), joined(ends), joined(encoding.words)};
    }

    // prompts -> all ids; then per prompt: truncated, number of tokens, tokens
    Message encode(const Message& question) const {
        Encoded encoded = prompt_tokenizer.value().encode({question.begin() + 1, question.end()});
        Message answer{joined(encoded.ids)};
        for (size_t i = 0; i < encoded.truncated.size(); ++i) {
            answer.push_back(encoded.truncated[i]);
            answer.push_back(std::to_string(encoded.tokens[i].size()));
            answer.insert(answer.end(), encoded.tokens[i].begin(), encoded.tokens[i].end());
        }
        return answer;
    }

    // prompt, words -> positions of each
    Message find_words(const Message& question) const {
        Message answer;
        std::vector<std::string> words(question.begin() + 2, question.end());
        for (const auto& found : prompt_tokenizer.value().find_words(question.at(1), words)) {
            answer.push_back(joined(found));
        }
        return answer;
    }

    Message answer(const Message& question) {
        const std::string& command = question.at(0);
        if (command == "load") return load(question);
        if (command == "pieces") return pieces(question);
        if (command == "encode") return encode(question);
        return find_words(question);
    }
};

}  // namespace

int main() {
    Probe probe;
    while (std::optional<Message> question = read_message()) {
        Message answer;
        try {
            answer = probe.answer(*question);
            answer.insert(answer.begin(), "ok");
        } catch (const Error& error) {
            answer = {"error", std::to_string(static_cast<int>(error.status())), error.what()};
        }
        write_message(answer);
    }
    return 0;
}
