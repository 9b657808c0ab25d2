#include "telemetry/attention_maps.hpp"

#include <algorithm>
#include <cmath>

#include "execution/control.hpp"

namespace ebca::internal {
namespace {

// Turns the scores [T] of a position into probabilities, and adds them to `mean`, whose tokens are `stride` apart.
void add_softmax(std::vector<double>& scores, double* mean, int64_t stride) {
    double most = *std::max_element(scores.begin(), scores.end()), sum = 0;
    for (double& score : scores) sum += score = std::exp(score - most);
    for (size_t t = 0; t < scores.size(); ++t) mean[static_cast<int64_t>(t) * stride] += scores[t] / sum;
}

}  // namespace

AttentionMaps::AttentionMaps(const UNetSpec& unet, const Sizes& sizes, int64_t images)
    : shape_{images, sizes.at("tokens"), sizes.at("height"), sizes.at("width")},
      sum_(static_cast<size_t>(elements(shape_))) {
    for (const LayerSpec& layer : unet.layers) {
        layers_.push_back({layer.heads, evaluate(layer.height, sizes), evaluate(layer.width, sizes)});
    }
}

// In float64, whose rounding to float32 does not depend on the order of the sums.
void AttentionMaps::add(int64_t layer, const Tensor& q, const Tensor& k) {
    const Layer& at = layers_.at(static_cast<size_t>(layer));
    int64_t images = shape_[0], tokens = shape_[1], positions = at.height * at.width, channels = q.shape[2];
    int64_t dim = channels / at.heads, contexts = k.shape[1];
    double scale = std::pow(static_cast<double>(dim), -0.5);
    const std::vector<float> all_queries = to_floats(q), all_keys = to_floats(k);
    std::vector<double> keys(static_cast<size_t>(dim * tokens)), scores(static_cast<size_t>(tokens));
    for (int64_t image = 0; image < images; ++image) {
        int64_t row = q.shape[0] - images + image;
        const float* queries = all_queries.data() + row * positions * channels;
        const float* context = all_keys.data() + row * contexts * tokens * channels;
        std::vector<double> mean(static_cast<size_t>(tokens * positions));
        for (int64_t head = 0; head < at.heads; ++head) {
            for (int64_t c = 0; c < dim; ++c) {
                for (int64_t t = 0; t < tokens; ++t) {
                    keys[static_cast<size_t>(c * tokens + t)] =
                        static_cast<double>(context[t * channels + head * dim + c]);
                }
            }
            for (int64_t i = 0; i < positions; ++i) {
                std::fill(scores.begin(), scores.end(), 0.0);
                for (int64_t c = 0; c < dim; ++c) {
                    auto value = static_cast<double>(queries[i * channels + head * dim + c]);
                    const double* key = keys.data() + c * tokens;
                    for (int64_t t = 0; t < tokens; ++t) scores[static_cast<size_t>(t)] += value * key[t];
                }
                for (double& score : scores) score *= scale;
                add_softmax(scores, mean.data() + i, positions);
            }
        }
        for (double& value : mean) value /= static_cast<double>(at.heads);
        const std::vector<double> planes = resize_planes(mean, tokens, {at.height, at.width}, {shape_[2], shape_[3]});
        double* total = sum_.data() + image * static_cast<int64_t>(planes.size());
        for (size_t i = 0; i < planes.size(); ++i) total[i] += planes[i];
    }
    ++count_;
}

Array AttentionMaps::maps() const {
    Array out(shape_);
    auto count = static_cast<double>(std::max<int64_t>(count_, 1));
    std::transform(sum_.begin(), sum_.end(), out.values.begin(),
                   [&](double value) { return static_cast<float>(value / count); });
    return out;
}

}  // namespace ebca::internal
