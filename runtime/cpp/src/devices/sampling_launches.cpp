#include "devices/sampling_launches.hpp"

#include <algorithm>

#include "error.hpp"

namespace ebca::internal {
namespace {

constexpr int64_t kSamplingBlock = 256;

const Shape& shape_of(const Tensors& arrays, const char* name) {
    for (const auto& [own, tensor] : arrays) {
        if (own == name) return tensor.shape;
    }
    throw ParameterError(text("no shape of tensor '", name, "'"));
}

int64_t behind_first(const Shape& shape) {
    return elements({shape.begin() + 1, shape.end()});
}

}  // namespace

SamplingLaunch sampling_launch(const std::string& kernel, const Tensors& arrays) {
    SamplingLaunch out;
    for (const auto& [name, tensor] : arrays) {
        // The rows of these are found by pointers and 64-bit indices.
        bool by_row = name == "history" || name == "controls";
        int64_t count = by_row ? behind_first(tensor.shape) : elements(tensor.shape);
        if (count > INT32_MAX - kSamplingBlock) {
            throw ParameterError(
                text("sampling needs '", name, "' with ", count, " elements, and its kernels count to 2^31 - 1"),
                "make a smaller image, or fewer at once");
        }
    }
    auto size = [&](const char* name, int64_t value) {
        if (value > INT32_MAX) {
            throw ParameterError(text("sampling needs ", name, " = ", value, ", and its kernels take up to 2^31 - 1"),
                                 "make a smaller image, or fewer at once");
        }
        out.values[name] = static_cast<int32_t>(value);
    };
    const Shape &latents = shape_of(arrays, "latents"), &of_contexts = shape_of(arrays, "contexts");
    int64_t images = latents[0], image = behind_first(latents);
    int64_t rows = of_contexts[0], contexts = of_contexts[1], tokens = of_contexts[2];
    int64_t work = 1;
    if (kernel == "begin") {
        size("images", images);
        size("image", image);
        size("in_image", behind_first(shape_of(arrays, "sample")));
        size("tokens", tokens);
        work = std::max(rows * image, rows * contexts * tokens);
    } else if (kernel == "end") {
        size("elements", images * image);
        size("room", shape_of(arrays, "history")[0]);
        size("guided", rows > images);
        size("words", tokens * of_contexts[3]);
        work = std::max(images * image, elements(of_contexts));
    }
    if (kernel == "embed") {
        work = elements(shape_of(arrays, "time_embeddings"));
        size("words", work);
    } else if (kernel != "advance") {
        size("rows", rows);
        size("contexts", contexts);
    }
    out.blocks = (work + kSamplingBlock - 1) / kSamplingBlock;
    return out;
}

}  // namespace ebca::internal
