#include "execution/arena.hpp"

#include <algorithm>

#include "contract/tensor.hpp"
#include "error.hpp"

namespace ebca::internal {
namespace {

constexpr int64_t kLargest = int64_t{1} << 60;

struct Placed {
    int64_t offset;
    Lifetime tensor;
};

int64_t aligned(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

std::map<std::string, Lifetime> lifetimes(const std::vector<Step>& steps, const std::map<std::string, int64_t>& sizes,
                                          const std::vector<std::string>& keep) {
    std::map<std::string, Lifetime> out;
    for (size_t index = 0; index < steps.size(); ++index) {
        auto now = static_cast<int64_t>(index);
        for (const auto* names : {&steps[index].inputs, &steps[index].outputs}) {
            for (const std::string& name : *names) {
                out.emplace(name, Lifetime{sizes.at(name), now, now}).first->second.last = now;
            }
        }
    }
    for (const std::string& name : keep) out[name] = {sizes.at(name), 0, static_cast<int64_t>(steps.size())};
    return out;
}

Layout lay_out(const std::map<std::string, Lifetime>& tensors) {
    std::vector<std::pair<std::string, Lifetime>> order(tensors.begin(), tensors.end());
    std::stable_sort(order.begin(), order.end(),
                     [](const auto& a, const auto& b) { return a.second.bytes > b.second.bytes; });
    Layout layout;
    std::vector<Placed> placed;  // by offset
    int64_t total = 0;
    for (const auto& [name, tensor] : order) {
        int64_t offset = 0;
        for (const Placed& other : placed) {
            if (!other.tensor.meets(tensor)) continue;
            if (offset + tensor.bytes <= other.offset) break;
            offset = std::max(offset, aligned(other.offset + other.tensor.bytes));
        }
        if (tensor.bytes > kLargest - offset) throw EngineError("the tensors of the steps are larger than any memory");
        layout.offsets[name] = offset;
        auto after = [](int64_t value, const Placed& one) { return value < one.offset; };
        placed.insert(std::upper_bound(placed.begin(), placed.end(), offset, after), {offset, tensor});
        total = std::max(total, offset + tensor.bytes);
    }
    layout.bytes = aligned(total);
    return layout;
}

}  // namespace ebca::internal
