// Tables of unicode_tables.cpp, each sorted by its first column (compositions by their first two).
#pragma once

#include <cstdint>

namespace ebca::internal::unicode {

template <typename Row>
struct Table {
    const Row* first;
    const Row* last;
    const Row* begin() const { return first; }
    const Row* end() const { return last; }
};

struct Range {
    char32_t first, last;
};

// Every `stride`-th character from `first` to `last` has `delta` added.
struct CaseRange {
    char32_t first, last;
    uint32_t stride;
    int32_t delta;
};

struct CombiningRange {
    char32_t first, last;
    uint8_t combining_class;
};

// `right` is 0 where a character stands for one other. `left` may decompose further.
struct Decomposition {
    char32_t composed, left, right;
};

struct Composition {
    char32_t left, right, composed;
};

extern const Table<Range> letters;
extern const Table<Range> numbers;
extern const Table<Range> spaces;
extern const Table<CaseRange> case_ranges;
extern const Table<CombiningRange> combining_ranges;
extern const Table<Decomposition> decompositions;
extern const Table<Composition> compositions;

}  // namespace ebca::internal::unicode
