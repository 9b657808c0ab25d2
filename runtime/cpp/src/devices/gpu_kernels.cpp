#include "devices/gpu_kernels.hpp"

#include "devices/exclusion_launch.hpp"
#include "devices/sampling_launches.hpp"
#include "error.hpp"

namespace ebca::internal {
namespace {

constexpr const char* kDtype = "float16";

const Tensor& named(const Tensors& tensors, const std::string& name) {
    for (const auto& [own, tensor] : tensors) {
        if (own == name) return tensor;
    }
    throw ParameterError(text("no device address for tensor '", name, "'"));
}

Addresses addresses_of(const Tensors& tensors) {
    Addresses out;
    for (const auto& [name, tensor] : tensors) out[name] = reinterpret_cast<uint64_t>(tensor.data);
    return out;
}

// One launch with its parameter buffer, which the driver reads at each call.
struct BoundLaunch {
    void* function;
    const Binary* binary;
    std::array<uint32_t, 3> grid;
    std::vector<std::byte> buffer;
    std::vector<void*> parameters;  // into the buffer
};

class BoundKernels : public Call {
  public:
    BoundKernels(std::shared_ptr<GpuKernels> kernels, std::vector<BoundLaunch> launches)
        : kernels_(std::move(kernels)), launches_(std::move(launches)) {}

    void run() override {
        for (BoundLaunch& one : launches_) {
            kernels_->driver().launch_kernel(one.function, one.grid, one.binary->threads(), one.binary->shared_bytes,
                                             one.parameters.data());
        }
    }

  private:
    std::shared_ptr<GpuKernels> kernels_;
    std::vector<BoundLaunch> launches_;
};

class LayerOp : public OpKernel {
  public:
    LayerOp(std::shared_ptr<GpuKernels> kernels, Variant variant, int64_t heads, int64_t head_dim)
        : kernels_(std::move(kernels)), variant_(variant), heads_(heads), head_dim_(head_dim) {}

    int64_t scratch_bytes(const Tensors& inputs) const override { return launches(inputs).scratch_bytes; }

    std::unique_ptr<Call> bind(const Tensors& inputs, const Tensors& outputs, void* scratch) const override {
        OpLaunches made = launches(inputs);
        Addresses addresses = addresses_of(inputs);
        addresses.merge(addresses_of(outputs));
        for (const auto& [name, offset] : made.scratch) {
            addresses[name] = reinterpret_cast<uint64_t>(static_cast<std::byte*>(scratch) + offset);
        }
        return kernels_->bind(made.launches, addresses);
    }

  private:
    OpLaunches launches(const Tensors& inputs) const {
        const Shape &q = named(inputs, "q").shape, &k = named(inputs, "k").shape;
        int64_t groups = is_guided(variant_) ? named(inputs, "bias").shape.at(2) : 0;
        OpShape shape{q.at(0), q.at(1), k.at(1), k.at(2), heads_, head_dim_, groups};
        return kernels_->kernels().launches(variant_, kernels_->driver().capability(), kDtype, shape);
    }

    std::shared_ptr<GpuKernels> kernels_;
    Variant variant_;
    int64_t heads_;
    int64_t head_dim_;
};

}  // namespace

GpuKernels::GpuKernels(std::shared_ptr<Driver> driver, const std::filesystem::path& folder)
    : driver_(std::move(driver)), kernels_(folder) {}

std::unique_ptr<OpKernel> GpuKernels::op(Variant variant, const LayerSpec& layer, DType dtype) {
    if (dtype != DType::float16) return nullptr;
    return std::make_unique<LayerOp>(shared_from_this(), variant, layer.heads, layer.head_dim);
}

std::unique_ptr<Call> GpuKernels::sampling(const std::string& kernel, const Tensors& arrays) {
    SamplingLaunch planned = sampling_launch(kernel, arrays);
    return bind({kernels_.launch("ebca_" + kernel, driver_->capability(), planned.blocks, planned.values)},
                addresses_of(arrays));
}

std::unique_ptr<Call> GpuKernels::exclude(const Tensors& arrays, int64_t layer_stride) {
    SamplingLaunch planned = exclusion_launch(arrays, layer_stride);
    return bind({kernels_.launch("ebca_exclude", driver_->capability(), planned.blocks, planned.values)},
                addresses_of(arrays));
}

std::unique_ptr<Call> GpuKernels::bind(const std::vector<KernelLaunch>& launches, const Addresses& addresses) {
    std::vector<BoundLaunch> made;
    for (const KernelLaunch& one : launches) {
        BoundLaunch bound{function(*one.binary), one.binary, one.grid, one.pack(addresses), {}};
        for (const Argument& argument : *one.arguments) {
            bound.parameters.push_back(bound.buffer.data() + argument.offset);
        }
        made.push_back(std::move(bound));
    }
    return std::make_unique<BoundKernels>(shared_from_this(), std::move(made));
}

void* GpuKernels::function(const Binary& binary) {
    void*& found = functions_[&binary];
    if (!found) found = driver_->load(kernels_.image(binary), binary.kernel);
    return found;
}

}  // namespace ebca::internal
