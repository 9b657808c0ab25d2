#include "sampling/device_known.hpp"

#include <algorithm>
#include <numeric>

#include "sampling/known.hpp"

namespace ebca::internal {
namespace {

Shape of_room(int64_t room, Shape latents) {
    latents.insert(latents.begin(), room);
    return latents;
}

// The same memory as words of 32 bits.
Tensor words(const Tensor& floats) {
    return {floats.data, DType::int32, {floats.count()}};
}

}  // namespace

DeviceKnown::DeviceKnown(Device& device, const Tensor& step, const Tensor& start, int64_t room)
    : device_(device),
      known_(device, of_room(room, start.shape), DType::float32),
      base_(device, {start.count()}, DType::int32),
      stride_(device, {start.count()}, DType::int32) {
    auto* base = static_cast<int32_t*>(base_.shared().host.data);
    std::iota(base, base + start.count(), 0);
    std::fill_n(static_cast<int32_t*>(stride_.shared().host.data), start.count(), static_cast<int32_t>(start.count()));
    device.upload({base_.shared(), stride_.shared()});
    call_ = device.graphs()->sampling("embed", {{"step", step},
                                                {"embeddings", words(known_.shared().array)},
                                                {"embedding_base", base_.shared().array},
                                                {"embedding_stride", stride_.shared().array},
                                                {"time_embeddings", words(start)}});
}

void DeviceKnown::begin(const SchedulerTable& table, const Tensor& start, std::vector<NormalStream>& streams) {
    Array next(start.shape);
    std::copy_n(start.floats(), next.values.size(), next.values.begin());
    KnownLatents known(table, next, streams);
    float* out = known_.shared().host.floats();
    for (int64_t i = 0; i < table.evaluations(); ++i) {
        known.next(next);
        out = std::copy(next.values.begin(), next.values.end(), out);
    }
    device_.upload({known_.shared()});
}

}  // namespace ebca::internal
