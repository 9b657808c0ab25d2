#include "devices/exclusion_launch.hpp"

#include "error.hpp"

namespace ebca::internal {
namespace {

// Positions that a program holds in registers: maps of 32x32, the largest that locate subjects.
constexpr int64_t kExclusionBlock = 1024;
// Groups that a program keeps apart, a bit for each.
constexpr int64_t kMostGroups = 31;

}  // namespace

SamplingLaunch exclusion_launch(const Tensors& arrays, int64_t layer_stride) {
    auto shape_of = [&](const char* name) -> const Shape& {
        for (const auto& [own, tensor] : arrays) {
            if (own == name) return tensor.shape;
        }
        throw ParameterError(text("exclusive attention lacks ", name), "pass every tensor");
    };
    const Shape &maps = shape_of("maps"), &near = shape_of("near");  // [L,R,G,N], [h,w]
    int64_t groups = maps.at(2), side_by_side = elements({maps.begin() + 1, maps.end()});
    if (maps.at(3) > kExclusionBlock) {
        throw ParameterError(
            text("exclusive attention is given maps of ", near.at(0), "x", near.at(1)),
            text("its GPU kernel takes ", kExclusionBlock, " positions or fewer: use layers of a lower resolution"));
    }
    if (groups > kMostGroups) {
        throw ParameterError(text("exclusive attention is given ", groups, " groups"),
                             text("it takes ", kMostGroups, " or fewer"));
    }
    if (layer_stride < side_by_side || layer_stride > INT32_MAX) {
        throw ParameterError(text("the maps of source layers are ", layer_stride, " elements apart"),
                             text("pass ", side_by_side, " or more, below 2^31"));
    }
    SamplingLaunch out;
    out.values = {{"layers", static_cast<int32_t>(maps[0])},
                  {"layer_stride", static_cast<int32_t>(layer_stride)},
                  {"contexts", static_cast<int32_t>(shape_of("bias").at(1))},
                  {"groups", static_cast<int32_t>(groups)},
                  {"height", static_cast<int32_t>(near.at(0))},
                  {"width", static_cast<int32_t>(near.at(1))}};
    out.blocks = maps[1];
    return out;
}

}  // namespace ebca::internal
