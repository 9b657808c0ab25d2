#include "contract/tensor.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "contract/product.hpp"
#include "error.hpp"

namespace ebca::internal {

size_t item_size(DType dtype) {
    switch (dtype) {
        case DType::float16:
            return 2;
        case DType::int64:
        case DType::float64:
            return 8;
        default:
            return 4;
    }
}

int64_t elements(const Shape& shape) {
    int64_t product = 1;
    for (int64_t size : shape) {
        if (size < 0 || !multiply(product, size, product)) {
            throw EngineError(text("a tensor of shape ", to_string(shape), " has a size that cannot be"));
        }
    }
    return product;
}

int64_t byte_size(const Shape& shape, DType dtype) {
    int64_t bytes = 0;
    if (!multiply(elements(shape), static_cast<int64_t>(item_size(dtype)), bytes)) {
        throw EngineError(text("a tensor of shape ", to_string(shape), " has a size that cannot be"));
    }
    return bytes;
}

std::string to_string(const Shape& shape) {
    std::string out = "[";
    for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + "]";
}

Memory Memory::host(int64_t bytes) {
    // With calloc the kernel zeroes the pages of a large block when they are first touched.
    std::shared_ptr<void> raw(std::calloc(static_cast<size_t>(bytes) + kAlignment, 1), std::free);
    if (!raw) throw std::bad_alloc();
    auto address = reinterpret_cast<uintptr_t>(raw.get());
    auto* begin = static_cast<std::byte*>(raw.get()) + (kAlignment - address % kAlignment) % kAlignment;
    return Memory(std::shared_ptr<void>(raw, begin), bytes);
}

Tensor Memory::view(int64_t offset, const Shape& shape, DType dtype) const {
    if (offset < 0 || offset > bytes_ || byte_size(shape, dtype) > bytes_ - offset) {
        throw EngineError(text("a tensor of shape ", to_string(shape), " does not fit its memory"));
    }
    return Tensor{static_cast<std::byte*>(begin_.get()) + offset, dtype, shape};
}

std::vector<float> to_floats(const Tensor& tensor) {
    auto count = static_cast<size_t>(tensor.count());
    if (tensor.dtype != DType::float16) return {tensor.floats(), tensor.floats() + count};
    const auto* words = static_cast<const uint16_t*>(tensor.data);
    std::vector<float> out(count);
    std::transform(words, words + count, out.begin(), [](uint16_t word) {
        int exponent = word >> 10 & 31, fraction = word & 1023;
        float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                     : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                     : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
        return word >> 15 ? -size : size;
    });
    return out;
}

bool all_finite(const Tensor& tensor) {
    if (tensor.dtype == DType::float32) return all_finite(tensor.floats(), tensor.count());
    if (tensor.dtype != DType::float16) return true;
    const auto* bits = static_cast<const uint16_t*>(tensor.data);
    for (int64_t i = 0; i < tensor.count(); ++i) {
        if ((bits[i] & 0x7c00) == 0x7c00) return false;
    }
    return true;
}

}  // namespace ebca::internal
