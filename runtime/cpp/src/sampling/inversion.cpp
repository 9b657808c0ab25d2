#include "sampling/inversion.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

#include "error.hpp"
#include "parameters.hpp"

namespace ebca::internal {
namespace {

constexpr int64_t kSmallest = 8;
constexpr double kTiny = 1e-7;
constexpr int64_t kMost = 1000;

// One channel [height,width].
struct Plane {
    int64_t height = 0;
    int64_t width = 0;
    std::vector<double> values;

    double at(int64_t y, int64_t x) const { return values[static_cast<size_t>(y * width + x)]; }
    double& at(int64_t y, int64_t x) { return values[static_cast<size_t>(y * width + x)]; }
};

Plane plane(int64_t height, int64_t width) {
    return {height, width, std::vector<double>(static_cast<size_t>(height * width))};
}

int64_t wrapped(int64_t index, int64_t size) {
    return (index % size + size) % size;
}

// Means of 2 x 2 blocks; an odd last row or column is left out.
Plane halved(const Plane& channel) {
    Plane out = plane(channel.height / 2, channel.width / 2);
    for (int64_t y = 0; y < out.height; ++y) {
        for (int64_t x = 0; x < out.width; ++x) {
            out.at(y, x) = (channel.at(2 * y, 2 * x) + channel.at(2 * y, 2 * x + 1) + channel.at(2 * y + 1, 2 * x) +
                            channel.at(2 * y + 1, 2 * x + 1)) /
                           4;
        }
    }
    return out;
}

// d/dx of the sum over the pyramid of mean(x * shifted x)^2, for one shift along each axis and size.
Plane auto_correlation_gradient(const Plane& channel, Pcg64& shifts) {
    auto bound = static_cast<uint32_t>(std::max<int64_t>(channel.height / 2, 1));
    auto shift = static_cast<int64_t>(shifts.integers(bound));
    Plane gradient = plane(channel.height, channel.width);
    auto count = static_cast<double>(channel.values.size());
    for (bool along_rows : {true, false}) {
        auto rolled = [&](int64_t y, int64_t x, int64_t by) {
            return along_rows ? channel.at(wrapped(y - by, channel.height), x)
                              : channel.at(y, wrapped(x - by, channel.width));
        };
        double mean = 0;
        for (int64_t y = 0; y < channel.height; ++y) {
            for (int64_t x = 0; x < channel.width; ++x) mean += channel.at(y, x) * rolled(y, x, shift);
        }
        mean /= count;
        for (int64_t y = 0; y < channel.height; ++y) {
            for (int64_t x = 0; x < channel.width; ++x) {
                gradient.at(y, x) += 2 * mean / count * (rolled(y, x, shift) + rolled(y, x, -shift));
            }
        }
    }
    if (channel.height > kSmallest && channel.width > 1) {
        Plane below = auto_correlation_gradient(halved(channel), shifts);
        for (int64_t y = 0; y < 2 * below.height; ++y) {
            for (int64_t x = 0; x < 2 * below.width; ++x) gradient.at(y, x) += below.at(y / 2, x / 2) / 4;
        }
    }
    return gradient;
}

// A step down var + mean^2 - 1 - ln(var), twice the divergence of a normal distribution from the standard one.
void step_down_kl(std::vector<Plane>& channels, double size) {
    double count = 0, mean = 0, variance = 0;
    for (const Plane& channel : channels) {
        for (double value : channel.values) mean += value;
        count += static_cast<double>(channel.values.size());
    }
    mean /= count;
    for (const Plane& channel : channels) {
        for (double value : channel.values) variance += (value - mean) * (value - mean);
    }
    variance /= count - 1;
    double of_spread = 2 / (count - 1) * (1 - 1 / (variance + kTiny)), of_mean = 2 * mean / count;
    for (Plane& channel : channels) {
        for (double& value : channel.values) value -= size * ((value - mean) * of_spread + of_mean);
    }
}

void regularize(const NoiseRegularization& settings, float* noise, const Shape& shape, Pcg64& shifts) {
    int64_t count = shape[2] * shape[3];
    std::vector<Plane> channels;
    for (int64_t c = 0; c < shape[1]; ++c) {
        channels.push_back({shape[2], shape[3], {noise + c * count, noise + (c + 1) * count}});
    }
    for (int64_t round = 0; round < settings.rounds; ++round) {
        for (int64_t roll = 0; settings.auto_correlation != 0 && roll < settings.rolls; ++roll) {
            double size = settings.auto_correlation / static_cast<double>(settings.rolls);
            for (Plane& channel : channels) {
                Plane gradient = auto_correlation_gradient(channel, shifts);
                for (size_t i = 0; i < channel.values.size(); ++i) channel.values[i] -= size * gradient.values[i];
            }
        }
        if (settings.kl != 0) step_down_kl(channels, settings.kl);
    }
    for (const Plane& channel : channels) {
        noise = std::transform(channel.values.begin(), channel.values.end(), noise,
                               [](double value) { return static_cast<float>(value); });
    }
}

}  // namespace

Adjust NoiseRegularization::start(int64_t images) const {
    for (auto [name, value] : {std::pair{"rounds", rounds}, std::pair{"rolls", rolls}}) {
        if (value < 0 || value > kMost) throw rules::number_range(name, value, 0, kMost);
    }
    for (auto [name, value] : {std::pair{"auto_correlation", auto_correlation}, std::pair{"kl", kl}}) {
        if (!std::isfinite(value)) throw rules::finite_number(name, value);
    }
    auto shifts = std::make_shared<std::vector<Pcg64>>(static_cast<size_t>(images), Pcg64(seed));
    return [settings = *this, shifts](Array& noise) {
        for (int64_t n = 0; n < noise.size(0); ++n) {
            regularize(settings, noise.row(n), noise.shape, (*shifts)[static_cast<size_t>(n)]);
        }
    };
}

}  // namespace ebca::internal
