// Arrays: what the host owns (`Array`), and what engines are bound to (`Tensor`). All are C-contiguous.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace ebca::internal {

using Shape = std::vector<int64_t>;

enum class DType { float32, float16, int64, int32, float64 };

size_t item_size(DType dtype);

// Number of elements; EngineError if it does not fit 63 bits or a size is negative.
int64_t elements(const Shape& shape);

// Bytes of such an array, with the same checks.
int64_t byte_size(const Shape& shape, DType dtype);

// "[2, 4, 64, 64]"
std::string to_string(const Shape& shape);

// A float32 array that owns its values.
struct Array {
    Array() = default;
    explicit Array(Shape shape, float value = 0.0f)
        : shape(std::move(shape)), values(static_cast<size_t>(elements(this->shape)), value) {}

    int64_t size(size_t axis) const { return shape.at(axis); }
    // Elements behind one index of the first axis.
    int64_t stride() const {
        return shape.empty() || shape[0] == 0 ? 1 : static_cast<int64_t>(values.size()) / shape[0];
    }
    float* row(int64_t index) { return values.data() + index * stride(); }
    const float* row(int64_t index) const { return values.data() + index * stride(); }

    Shape shape;
    std::vector<float> values;
};

// Memory with another owner, read or written by an engine.
struct Tensor {
    void* data = nullptr;
    DType dtype = DType::float32;
    Shape shape;

    float* floats() const { return static_cast<float*>(data); }
    int64_t count() const { return elements(shape); }
};

// Name to tensor, in the order of binding.
using Tensors = std::vector<std::pair<std::string, Tensor>>;

constexpr int64_t kAlignment = 256;  // bytes: more than a cache line or a vector load needs

// Zeroed memory of a device, aligned to kAlignment.
class Memory {
  public:
    // begin: gives the memory back when it goes.
    Memory(std::shared_ptr<void> begin, int64_t bytes) : begin_(std::move(begin)), bytes_(bytes) {}
    // On the host. std::bad_alloc without memory.
    static Memory host(int64_t bytes);

    int64_t bytes() const { return bytes_; }
    Tensor view(int64_t offset, const Shape& shape, DType dtype) const;

  private:
    std::shared_ptr<void> begin_;
    int64_t bytes_ = 0;
};

// The values of a float32 or float16 tensor, which are exact in float32.
std::vector<float> to_floats(const Tensor& tensor);

// Whether no value of a float32 or float16 tensor is infinite or not a number.
bool all_finite(const Tensor& tensor);

inline bool all_finite(const float* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        if (!std::isfinite(values[i])) return false;
    }
    return true;
}

}  // namespace ebca::internal
