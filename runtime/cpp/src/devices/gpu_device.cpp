#include "devices/gpu_device.hpp"

#include "backends/onnxruntime_gpu.hpp"
#include "devices/cuda_device.hpp"
#include "devices/cuda_driver.hpp"
#include "devices/gpu_kernels.hpp"

namespace ebca::internal {

Gpu open_gpu(int index, const GpuOptions& options, const std::string& ort_library, Log log) {
    auto driver = std::make_shared<CudaDriver>(index, options.stream);
    auto kernels = std::make_shared<GpuKernels>(driver, kernels_folder(options.kernels));
    auto backend = create_gpu_backend({ort_library, options.tensorrt_rtx_library, index, driver->stream(), log});
    return {std::make_shared<CudaDevice>(std::move(driver), std::move(kernels), std::move(log)), std::move(backend)};
}

}  // namespace ebca::internal
