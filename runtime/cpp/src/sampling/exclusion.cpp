#include "sampling/exclusion.hpp"

#include <algorithm>

namespace ebca::internal {

ExclusionState::ExclusionState(const GuidedTensors& guided, Device& device, int64_t evaluations)
    : evaluations_(evaluations) {
    const Shape& bias = guided.bias().array.shape;
    int64_t rows = bias[0], groups = bias[2], positions = bias[3];
    const auto [height, width] = guided.grid();
    auto add = [&](const char* name, const Shape& shape, DType dtype) {
        memory_.emplace(name, SharedMemory(device, shape, dtype));
    };
    add("subjects", {rows}, DType::int32);
    add("strengths", {evaluations, 2}, DType::float32);
    add("fixed", {rows, groups}, DType::int32);
    add("beyond", {rows, groups, positions}, DType::float32);
    add("near", {height, width}, DType::int32);
    add("outside", {height, width}, DType::float32);
    add("averages", {rows, groups, positions}, DType::float32);
}

ExclusiveAttention ExclusionState::tensors(const GuidedTensors& guided, const int32_t* step, const float* maps) const {
    const Shape& bias = guided.bias().host.shape;
    ExclusiveAttention out;
    out.step = step;
    out.subjects = host<int32_t>("subjects");
    out.strengths = host<float>("strengths");
    out.fixed = host<int32_t>("fixed");
    out.beyond = host<float>("beyond");
    out.near = host<int32_t>("near");
    out.outside = host<float>("outside");
    out.maps = maps;
    out.averages = host<float>("averages");
    out.bias = guided.bias().host.floats();
    out.layers = guided.source_maps().shape[0];
    out.layer_stride = guided.layer_stride();
    out.rows = bias[0];
    out.contexts = bias[1];
    out.groups = bias[2];
    out.height = guided.grid()[0];
    out.width = guided.grid()[1];
    return out;
}

void ExclusionState::begin(GuidedTensors& guided, const SubjectInputs& inputs) {
    const Shape &bias = guided.bias().host.shape, &tokens = guided.token_groups().host.shape;
    int64_t rows = bias[0], groups = bias[2], positions = bias[3];
    int64_t images = static_cast<int64_t>(inputs.counts.size()), known = inputs.groups(), first = rows - images;
    DistanceTables tables = distance_tables(guided.grid()[0], guided.grid()[1], inputs.window);
    std::copy(tables.near.begin(), tables.near.end(), host<int32_t>("near"));
    std::copy(tables.outside.begin(), tables.outside.end(), host<float>("outside"));
    std::fill_n(host<int32_t>("subjects"), rows, 0);
    std::fill_n(host<int32_t>("fixed"), rows * groups, 0);
    std::fill_n(host<float>("beyond"), rows * groups * positions, 1.0f);
    auto* token_groups = static_cast<int32_t*>(guided.token_groups().host.data);
    std::fill_n(token_groups, guided.token_groups().host.count(), -1);
    for (int64_t n = 0; n < images; ++n) {
        int64_t row = first + n;
        host<int32_t>("subjects")[row] = inputs.counts[static_cast<size_t>(n)];
        std::copy_n(inputs.fixed.begin() + n * known, known, host<int32_t>("fixed") + row * groups);
        std::transform(inputs.regions.row(n), inputs.regions.row(n) + known * positions,
                       host<float>("beyond") + row * groups * positions, [](float inside) { return 1.0f - inside; });
        std::copy_n(inputs.token_groups.begin() + n * tokens[2], tokens[2], token_groups + row * tokens[1] * tokens[2]);
    }
    std::fill_n(host<float>("strengths"), evaluations_ * 2, 0.0f);
    int64_t later = std::min(inputs.strengths.size(0) - 1, evaluations_);
    std::copy_n(inputs.strengths.values.begin() + 2, later * 2, host<float>("strengths"));
    ebca::internal::begin(tensors(guided, nullptr, nullptr), inputs.strengths.values.at(0));
}

HostExclusion::HostExclusion(GuidedTensors& guided, const SubjectInputs& inputs)
    : guided_(guided), inputs_(inputs), state_(guided, cpu_, 2) {
    state_.begin(guided, inputs);
}

void HostExclusion::apply(size_t control) {
    if (begun_) {
        float* strengths = state_.memory().at("strengths").shared().host.floats();
        for (size_t row : {0, 1}) {
            std::copy_n(inputs_.strengths.row(static_cast<int64_t>(control)), 2, strengths + 2 * row);
        }
        exclude(state_.tensors(guided_, &step_, guided_.host_maps()));
        step_ = 1;
    }
    begun_ = true;
}

DeviceExclusion::DeviceExclusion(GuidedTensors& guided, Device& device, const Tensor& step, int64_t evaluations)
    : guided_(guided), device_(device), state_(guided, device, evaluations) {
    Tensors arrays{{"step", step}, {"maps", guided.source_maps()}, {"bias", guided.bias().array}};
    for (const auto& [name, memory] : state_.memory()) arrays.emplace_back(name, memory.shared().array);
    call_ = device.graphs()->exclude(arrays, guided.layer_stride());
}

void DeviceExclusion::begin(const SubjectInputs& inputs) {
    state_.begin(guided_, inputs);
    std::vector<Shared> written;
    for (const auto& [name, memory] : state_.memory()) written.push_back(memory.shared());
    device_.upload(written);
}

}  // namespace ebca::internal
