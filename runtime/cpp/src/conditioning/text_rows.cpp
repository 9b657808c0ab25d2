#include "conditioning/text_rows.hpp"

#include <algorithm>

namespace ebca::internal {
namespace {

std::vector<std::string> one_of_each(const std::vector<TextPair>& texts, std::string TextPair::*which) {
    std::vector<std::string> out;
    for (const TextPair& text : texts) out.push_back(text.*which);
    return out;
}

// The rows of one encoder.
struct Column {
    Encoded encoded, empty;
    std::ptrdiff_t length;
    size_t next = 0;  // row of `encoded`
    std::vector<int64_t> ids = {};
    std::vector<float> weights = {};

    Column(const PromptTokenizer& tokenizer, const std::vector<std::string>& texts, const Reading& reading,
           ForEncoder encoder)
        : encoded(tokenizer.encode(texts, reading, encoder)),
          empty(tokenizer.encode({""}, reading, encoder)),
          length(static_cast<std::ptrdiff_t>(tokenizer.max_length())) {}

    void append(const Encoded& from, size_t row) {
        auto begin = static_cast<std::ptrdiff_t>(row) * length;
        ids.insert(ids.end(), from.ids.begin() + begin, from.ids.begin() + begin + length);
        weights.insert(weights.end(), from.weights.begin() + begin, from.weights.begin() + begin + length);
    }

    // The rows of a text, and empty ones up to `count`.
    void append_text(size_t text, size_t count) {
        for (size_t i = 0; i < count; ++i) {
            if (i < encoded.rows[text]) {
                append(encoded, next++);
            } else {
                append(empty, 0);
            }
        }
    }
};

}  // namespace

TextRows text_rows(const PromptTokenizer& tokenizer, const std::vector<TextPair>& texts, bool two_encoders,
                   const Reading& reading, size_t fewest) {
    std::vector<Column> columns;
    columns.emplace_back(tokenizer, one_of_each(texts, &TextPair::first), reading, ForEncoder::first);
    if (two_encoders) {
        columns.emplace_back(tokenizer, one_of_each(texts, &TextPair::second), reading, ForEncoder::second);
    }
    TextRows out;
    out.most = fewest;
    size_t rows = 0;
    for (size_t i = 0; i < texts.size(); ++i) {
        size_t count = columns.front().encoded.rows[i];
        // A text that is shorter for one encoder than for the other is lengthened like one beside longer ones.
        if (two_encoders) count = std::max(count, columns.back().encoded.rows[i]);
        out.of.push_back({rows, count});
        out.most = std::max(out.most, count);
        rows += count;
        for (Column& column : columns) column.append_text(i, count);
    }
    auto shorter = [&](const TextRows::Range& one) { return one.count < out.most; };
    if (std::any_of(out.of.begin(), out.of.end(), shorter)) {
        for (Column& column : columns) column.append(column.empty, 0);
        ++rows;
    }
    out.tokens.rows = static_cast<int64_t>(rows);
    out.tokens.ids = std::move(columns.front().ids);
    out.weights = std::move(columns.front().weights);
    out.truncated = columns.front().encoded.truncated;
    if (two_encoders) {
        out.tokens.second = std::move(columns.back().ids);
        out.weights_2 = std::move(columns.back().weights);
        out.truncated_2 = columns.back().encoded.truncated;
    }
    return out;
}

}  // namespace ebca::internal
