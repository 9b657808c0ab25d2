// The devices of this machine, without opening an engine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "devices/driver.hpp"

namespace ebca::internal {

struct DeviceInfo {
    std::string device;  // as parse_device takes it
    std::string name;
    int64_t bytes = 0;      // of memory
    Capability capability;  // of a GPU; else 0, 0
};

// The CPU, then the GPUs. BackendError for an NVIDIA driver that does not work.
std::vector<DeviceInfo> list_devices();

}  // namespace ebca::internal
