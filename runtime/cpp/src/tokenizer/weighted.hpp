// The weights that people write into prompts, and BREAK: (word:1.3), (word), [word]. runtime/text/weighted.py is the
// same in Python, and describes the syntax.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace ebca::internal {

// Bytes [begin, end) of the plain text, which have one weight.
struct Segment {
    size_t begin, end;
    double weight;  // factor of the embeddings of their tokens
    size_t part;    // how many BREAKs stand before it
};

// A prompt that has been read.
struct Weighted {
    std::string plain;  // without the syntax; a line end in place of each BREAK
    std::vector<Segment> segments;
    size_t parts = 1;  // one more than there are BREAKs
};

// A prompt in which nothing is syntax.
Weighted unweighted(std::string_view prompt);

// Reads a prompt of UTF-8, in time linear in its length. Throws ParameterError for brackets without a partner, a weight
// out of range, syntax that is not supported, or bytes that are not UTF-8.
Weighted parse_weights(std::string_view prompt);

}  // namespace ebca::internal
