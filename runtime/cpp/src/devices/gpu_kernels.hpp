// The compiled kernels on a GPU, bound to its stream, as runtime/devices/kernels.py has them.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "devices/device.hpp"
#include "devices/driver.hpp"
#include "devices/kernel_set.hpp"

namespace ebca::internal {

// Binaries are loaded when they are first bound. Use while the device is held (`Device::ready`).
class GpuKernels : public std::enable_shared_from_this<GpuKernels> {
  public:
    // folder: see KernelSet. BackendError.
    GpuKernels(std::shared_ptr<Driver> driver, const std::filesystem::path& folder);

    // The op for q, k, v of a dtype; null for one that there are no kernels for.
    std::unique_ptr<OpKernel> op(Variant variant, const LayerSpec& layer, DType dtype);

    // One of the kernels of sampling, bound to its arrays.
    std::unique_ptr<Call> sampling(const std::string& kernel, const Tensors& arrays);

    // The kernel of exclusive attention, bound to its arrays.
    std::unique_ptr<Call> exclude(const Tensors& arrays, int64_t layer_stride);

    // A call that enqueues launches in order.
    std::unique_ptr<Call> bind(const std::vector<KernelLaunch>& launches, const Addresses& addresses);

    const KernelSet& kernels() const { return kernels_; }
    Driver& driver() const { return *driver_; }

  private:
    // A binary's kernel on the device; loaded once.
    void* function(const Binary& binary);

    std::shared_ptr<Driver> driver_;
    KernelSet kernels_;
    std::map<const Binary*, void*> functions_;
};

}  // namespace ebca::internal
