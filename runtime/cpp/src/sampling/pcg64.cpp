#include "sampling/pcg64.hpp"

#include <array>

namespace ebca::internal {
namespace {

constexpr size_t kPool = 4;

// One of SeedSequence's hashes: its constant moves on with every value.
struct Hash {
    uint32_t constant;
    uint32_t factor;

    uint32_t operator()(uint32_t value) {
        value ^= constant;
        constant *= factor;
        value *= constant;
        return value ^ value >> 16;
    }
};

uint32_t mixed(uint32_t x, uint32_t y) {
    uint32_t out = 0xca01f9ddu * x - 0x4973f715u * y;
    return out ^ out >> 16;
}

// numpy.random.SeedSequence(seed).generate_state(4, numpy.uint64)
std::array<uint64_t, 4> seed_sequence(uint32_t seed) {
    Hash in{0x43b0d7e5u, 0x931e8875u}, out{0x8b51f9ddu, 0x58f38dedu};
    std::array<uint32_t, kPool> pool{};
    for (size_t i = 0; i < kPool; ++i) pool[i] = in(i == 0 ? seed : 0);
    for (size_t from = 0; from < kPool; ++from) {
        for (size_t to = 0; to < kPool; ++to) {
            if (from != to) pool[to] = mixed(pool[to], in(pool[from]));
        }
    }
    std::array<uint64_t, 4> words{};
    for (size_t i = 0; i < 8; ++i) words[i / 2] |= uint64_t{out(pool[i % kPool])} << (i % 2 * 32);
    return words;
}

}  // namespace

Pcg64::Word Pcg64::Word::operator+(const Word& other) const {
    uint64_t sum = low + other.low;
    return {high + other.high + (sum < low), sum};
}

// Modulo 2^128, by halves of 32 bits.
Pcg64::Word Pcg64::Word::operator*(const Word& other) const {
    uint64_t a = low >> 32, b = low & 0xffffffff, c = other.low >> 32, d = other.low & 0xffffffff;
    uint64_t lower = b * d, first = a * d + (lower >> 32), second = b * c + (first & 0xffffffff);
    uint64_t upper = a * c + (first >> 32) + (second >> 32);
    return {upper + low * other.high + high * other.low, second << 32 | (lower & 0xffffffff)};
}

Pcg64::Pcg64(uint32_t seed) {
    auto words = seed_sequence(seed);
    increment_ = {words[2] << 1 | words[3] >> 63, words[3] << 1 | 1};
    step();
    state_ = state_ + Word{words[0], words[1]};
    step();
}

void Pcg64::step() {
    state_ = state_ * Word{0x2360ed051fc65da4, 0x4385df649fccf645} + increment_;
}

uint64_t Pcg64::next64() {
    step();
    uint64_t folded = state_.high ^ state_.low;
    auto rotation = static_cast<unsigned>(state_.high >> 58);
    return folded >> rotation | folded << (-rotation & 63);
}

uint32_t Pcg64::next32() {
    if (upper_) {
        uint32_t kept = *upper_;
        upper_.reset();
        return kept;
    }
    uint64_t word = next64();
    upper_ = static_cast<uint32_t>(word >> 32);
    return static_cast<uint32_t>(word);
}

uint32_t Pcg64::integers(uint32_t bound) {
    if (bound <= 1) return 0;
    uint64_t product = uint64_t{next32()} * bound;
    uint32_t threshold = (0u - bound) % bound;
    while (static_cast<uint32_t>(product) < threshold) product = uint64_t{next32()} * bound;
    return static_cast<uint32_t>(product >> 32);
}

}  // namespace ebca::internal
