#include "execution/control.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "parameters.hpp"

namespace ebca::internal {
namespace {

// Smallest |sum of weights| over the sum of |weights|: rounding grows by the inverse of this ratio.
constexpr double kMinWeightSum = 1e-3;

struct Blend {
    int64_t low, high;
    double low_weight, high_weight;
};

// Linear interpolation with aligned corners, per target position.
std::vector<Blend> interpolation(int64_t source, int64_t target) {
    std::vector<Blend> out;
    double step = target > 1 ? static_cast<double>(source - 1) / static_cast<double>(target - 1) : 0.0;
    for (int64_t i = 0; i < target; ++i) {
        double position =
            i == target - 1 && target > 1 ? static_cast<double>(source - 1) : static_cast<double>(i) * step;
        int64_t low = std::clamp<int64_t>(static_cast<int64_t>(position), 0, std::max<int64_t>(source - 2, 0));
        double fraction = position - static_cast<double>(low);
        out.push_back({low, std::min(low + 1, source - 1), 1 - fraction, fraction});
    }
    return out;
}

bool any(const Array& array) {
    return std::any_of(array.values.begin(), array.values.end(), [](float value) { return value != 0; });
}

// As numpy broadcasts: dimensions are aligned at the end, and those of size 1 are repeated.
Array broadcast(const char* name, const std::optional<Array>& given, float standard, const Shape& shape) {
    if (!given) return Array(shape, standard);
    const Shape& own = given->shape;
    bool fits = own.size() <= shape.size();
    for (size_t i = 0; fits && i < own.size(); ++i) {
        int64_t size = own[own.size() - 1 - i];
        fits = size == 1 || size == shape[shape.size() - 1 - i];
    }
    if (!fits) throw rules::control_shape(name, to_string(own), to_string(shape));
    if (!all_finite(given->values.data(), static_cast<int64_t>(given->values.size()))) {
        throw rules::gamma_not_finite(name);
    }
    Array out(shape);
    for (size_t i = 0; i < out.values.size(); ++i) {
        size_t rest = i, from = 0, stride = 1;
        for (size_t axis = 1; axis <= own.size(); ++axis) {
            auto size = static_cast<size_t>(own[own.size() - axis]);
            auto wide = static_cast<size_t>(shape[shape.size() - axis]);
            if (size > 1) from += rest % wide * stride;
            stride *= size;
            rest /= wide;
        }
        out.values[i] = given->values[from];
    }
    return out;
}

LayerMasks checked_masks(const Array& mask, const std::vector<LayerSpec>& layers, const Sizes& sizes) {
    int64_t rows = sizes.at("batch"), height = sizes.at("height"), width = sizes.at("width");
    const Shape& shape = mask.shape;
    if (shape != Shape{shape[0], 1, height, width} || (shape[0] != 1 && shape[0] != rows)) {
        throw rules::mask_shape(to_string(shape), rows, height, width);
    }
    if (!all_finite(mask.values.data(), static_cast<int64_t>(mask.values.size()))) {
        throw rules::gamma_not_finite("mask");
    }
    return layer_masks(mask, layers, sizes);
}

}  // namespace

Control resolve(const EnergyControl& control, const std::vector<LayerSpec>& layers, const Sizes& sizes) {
    int64_t rows = sizes.at("batch"), contexts = sizes.at("contexts"), tokens = sizes.at("tokens");
    Control out;
    out.gamma_attn = broadcast("gamma_attn", control.gamma_attn, 0.0f, {rows, contexts, tokens});
    out.gamma_norm = broadcast("gamma_norm", control.gamma_norm, 0.0f, {rows, contexts});
    out.weights = broadcast("weights", control.weights, 1.0f, {rows, contexts});
    for (int64_t row = 0; row < rows; ++row) {
        const float* begin = out.weights.row(row);
        check_weights({begin, begin + contexts}, static_cast<size_t>(row));
    }
    out.norm_factor = static_cast<float>(control.norm_factor);
    if (!std::isfinite(out.norm_factor)) throw rules::norm_factor(control.norm_factor);
    if (control.rows_per_image < 1) throw rules::rows_per_image(control.rows_per_image);
    int64_t images = (rows + control.rows_per_image - 1) / control.rows_per_image;
    out.tie = tie_matrix(rows, contexts, control.tie_unconditional ? rows - images : 0);
    if (control.mask) out.masks = std::make_shared<const LayerMasks>(checked_masks(*control.mask, layers, sizes));
    return out;
}

Variant Control::variant() const {
    if (!any(gamma_attn) && !any(gamma_norm)) return Variant::attention;
    return masks ? Variant::update_masked : Variant::update;
}

void check_weights(const std::vector<double>& row, size_t index) {
    double total = 0, sum = 0;
    std::string shown;
    bool finite = true;
    for (double weight : row) {
        total += weight;
        sum += std::abs(weight);
        finite = finite && std::isfinite(weight);
        shown += (shown.empty() ? "" : ", ") + text(weight);
    }
    if (!finite)
        throw ParameterError(text("weights of row ", index, " are not finite: [", shown, "]"), "pass finite weights");
    if (std::abs(total) <= kMinWeightSum * sum) {
        throw ParameterError(text("weights of row ", index, ", [", shown, "], sum to ", total,
                                  ", and the composed output is divided by that sum"),
                             text("change an alpha so that |sum| exceeds ", kMinWeightSum, " of sum of |weights|"));
    }
}

Array tie_matrix(int64_t rows, int64_t contexts, int64_t tied_rows) {
    Array tie({rows, contexts, contexts});
    for (int64_t row = 0; row < rows; ++row) {
        float* matrix = tie.row(row);
        for (int64_t s = 0; s < contexts; ++s) matrix[s * contexts + s] = 1;
        if (row >= tied_rows || contexts < 2) continue;
        auto share = static_cast<float>(1.0 / static_cast<double>(contexts - 1));
        for (int64_t s = 1; s < contexts; ++s) std::fill_n(matrix + s * contexts + 1, contexts - 1, share);
    }
    return tie;
}

std::vector<double> resize_planes(const std::vector<double>& planes, int64_t count,
                                  const std::pair<int64_t, int64_t>& from, const std::pair<int64_t, int64_t>& to) {
    if (from == to) return planes;
    auto rows = interpolation(from.first, to.first), columns = interpolation(from.second, to.second);
    std::vector<double> out;
    out.reserve(static_cast<size_t>(count * to.first * to.second));
    for (int64_t n = 0; n < count; ++n) {
        const double* plane = planes.data() + n * from.first * from.second;
        for (const Blend& y : rows) {
            for (const Blend& x : columns) {
                auto at = [&](int64_t row, int64_t column) { return plane[row * from.second + column]; };
                out.push_back(y.low_weight * at(y.low, x.low) * x.low_weight +
                              y.low_weight * at(y.low, x.high) * x.high_weight +
                              y.high_weight * at(y.high, x.low) * x.low_weight +
                              y.high_weight * at(y.high, x.high) * x.high_weight);
            }
        }
    }
    return out;
}

Array resize_mask(const Array& mask, int64_t height, int64_t width) {
    Array out({mask.size(0), height, width});
    const std::vector<double> planes(mask.values.begin(), mask.values.end());
    const std::vector<double> resized =
        resize_planes(planes, mask.size(0), {mask.size(2), mask.size(3)}, {height, width});
    std::transform(resized.begin(), resized.end(), out.values.begin(),
                   [](double value) { return static_cast<float>(value); });
    return out;
}

LayerMasks layer_masks(const Array& mask, const std::vector<LayerSpec>& layers, const Sizes& sizes) {
    int64_t rows = sizes.at("batch"), contexts = sizes.at("contexts");
    LayerMasks masks;
    for (const LayerSpec& layer : layers) {
        std::pair size{evaluate(layer.height, sizes), evaluate(layer.width, sizes)};
        if (masks.count(size)) continue;
        int64_t positions = elements({size.first, size.second});
        Array resized = resize_mask(mask, size.first, size.second);
        Array full({rows, contexts, positions}, 1.0f);
        for (int64_t row = 0; row < rows; ++row) {
            std::copy_n(resized.row(resized.size(0) == 1 ? 0 : row), positions, full.row(row));
        }
        masks.emplace(size, std::move(full));
    }
    return masks;
}

}  // namespace ebca::internal
