// Products of sizes that come from files and callers.
#pragma once

#include <cstdint>
#include <limits>

namespace ebca::internal {

// Whether the product of two numbers that are not negative fits 63 bits; `product` is it then, and unchanged otherwise.
inline bool multiply(int64_t a, int64_t b, int64_t& product) {
    if (a < 0 || b < 0 || (a > 0 && b > std::numeric_limits<int64_t>::max() / a)) return false;
    product = a * b;
    return true;
}

}  // namespace ebca::internal
