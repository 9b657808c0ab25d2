#include "sampling/noise.hpp"

#include <cmath>

namespace ebca::internal {
namespace {

constexpr int64_t kNoiseBlock = 16;
constexpr double kTwoPi = 6.283185307179586476925286766559;

// To the nearest float32: libraries differ in the last bit of their float32 forms, and this noise equals Python's.
float rounded(double (*function)(double), float x) {
    return static_cast<float>(function(x));
}

// 16 uniform values to 16 normal ones, in float32 as PyTorch: the angle's rounding shows.
void box_muller(float* values) {
    for (int64_t i = 0; i < kNoiseBlock / 2; ++i) {
        float radius = std::sqrt(-2.0f * rounded(std::log, 1.0f - values[i]));
        float angle = static_cast<float>(kTwoPi) * values[i + kNoiseBlock / 2];
        values[i] = radius * rounded(std::cos, angle);
        values[i + kNoiseBlock / 2] = radius * rounded(std::sin, angle);
    }
}

}  // namespace

float NormalStream::uniform24() {
    return static_cast<float>(static_cast<uint32_t>(words_()) & ((1u << 24) - 1)) * 0x1p-24f;
}

double NormalStream::uniform53() {
    uint64_t high = words_(), low = words_();
    return static_cast<double>((high << 32 | low) & ((uint64_t{1} << 53) - 1)) * 0x1p-53;
}

void NormalStream::randn(float* out, int64_t count) {
    if (count < kNoiseBlock) {
        few(out, count);
        return;
    }
    for (int64_t i = 0; i < count; ++i) out[i] = uniform24();
    int64_t whole = count - count % kNoiseBlock;
    for (int64_t i = 0; i < whole; i += kNoiseBlock) box_muller(out + i);
    if (whole == count) return;
    // The last 16 values are drawn again.
    float* last = out + count - kNoiseBlock;
    for (int64_t i = 0; i < kNoiseBlock; ++i) last[i] = uniform24();
    box_muller(last);
}

void NormalStream::few(float* out, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        if (spare_) {
            out[i] = static_cast<float>(*spare_);
            spare_.reset();
            continue;
        }
        double u1 = uniform53(), u2 = uniform53();
        double radius = std::sqrt(-2.0 * std::log1p(-u2)), angle = kTwoPi * u1;
        out[i] = static_cast<float>(radius * std::cos(angle));
        spare_ = radius * std::sin(angle);
    }
}

Array draw(std::vector<NormalStream>& streams, const Shape& shape) {
    Array out(shape);
    if (streams.size() == 1) {
        streams[0].randn(out.values.data(), static_cast<int64_t>(out.values.size()));
        return out;
    }
    for (int64_t n = 0; n < shape[0]; ++n) streams[static_cast<size_t>(n)].randn(out.row(n), out.stride());
    return out;
}

}  // namespace ebca::internal
