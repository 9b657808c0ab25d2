#include "devices/device_list.hpp"

#include "backends/processor.hpp"
#include "devices/cuda_driver.hpp"
#include "error.hpp"
#include "memory.hpp"

namespace ebca::internal {

std::vector<DeviceInfo> list_devices() {
    std::vector<DeviceInfo> out{{"cpu", processor_model(), machine_bytes(), {0, 0}}};
    for (const GpuInfo& gpu : list_gpus()) {
        out.push_back({text("cuda:", out.size() - 1), gpu.name, gpu.bytes, gpu.capability});
    }
    return out;
}

}  // namespace ebca::internal
