// `numpy.random.default_rng(seed).integers(n)`, for results that do not depend on the language of the host.
#pragma once

#include <cstdint>
#include <optional>

namespace ebca::internal {

// PCG64 (O'Neill, 2014: XSL RR 128/64), seeded as numpy's SeedSequence seeds it.
class Pcg64 {
  public:
    explicit Pcg64(uint32_t seed);

    // Uniform in 0 .. bound - 1 (Lemire, 2019); bound is at least 1.
    uint32_t integers(uint32_t bound);

  private:
    // 128 bits, which not every compiler has a type for.
    struct Word {
        uint64_t high = 0;
        uint64_t low = 0;

        Word operator+(const Word& other) const;
        Word operator*(const Word& other) const;
    };

    uint64_t next64();
    uint32_t next32();
    void step();

    Word state_;
    Word increment_;
    // numpy hands out the lower half of a 64-bit word first and keeps the upper one.
    std::optional<uint32_t> upper_;
};

}  // namespace ebca::internal
