// The start, end or padding token of a tokenizer, in the manifest.
#pragma once

#include <cstdint>
#include <string>

namespace ebca::internal {

// The vocabulary must give the token the same id.
struct SpecialToken {
    std::string token;
    int64_t id = 0;
};

}  // namespace ebca::internal
