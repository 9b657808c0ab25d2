#include "devices/device_list.hpp"

#include "devices/cuda_driver.hpp"
#include "error.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {

std::vector<DeviceInfo> list_devices() {
    std::vector<DeviceInfo> out{{"cpu", platform::processor_model(), platform::machine_bytes(), {0, 0}}};
    for (const GpuInfo& gpu : list_gpus()) {
        out.push_back({text("cuda:", out.size() - 1), gpu.name, gpu.bytes, gpu.capability});
    }
    return out;
}

}  // namespace ebca::internal
