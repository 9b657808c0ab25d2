#include <mach/mach.h>
#include <sys/sysctl.h>
#include <sys/utsname.h>

#include <thread>

#include "platform/platform.hpp"

namespace ebca::internal::platform {
namespace fs = std::filesystem;

fs::path user_cache() {
    std::string home = variable("HOME");
    return home.empty() ? fs::path() : to_path(home) / "Library" / "Caches" / "ebca";
}

std::vector<std::string> onnxruntime_names() {
    return {"libonnxruntime.1.dylib", "libonnxruntime.dylib"};
}

const char* openvino_name() {
    return "libopenvino_c.dylib";
}

const char* cuda_driver_name() {
    return "libcuda.dylib";
}

// The system compresses and drops pages, and has no list of mappings to read.
void forget(const std::vector<fs::path>&) {}

void trim_heap() {}

std::shared_mutex& mappings() {
    static std::shared_mutex lock;
    return lock;
}

int64_t machine_bytes() {
    int64_t bytes = 0;
    size_t size = sizeof bytes;
    return ::sysctlbyname("hw.memsize", &bytes, &size, nullptr, 0) == 0 ? bytes : 0;
}

int64_t available_bytes() {
    vm_statistics64_data_t machine{};
    mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
    if (::host_statistics64(::mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&machine), &count)) {
        return INT64_MAX;
    }
    // Pages of files, and those that can be compressed, are given up for it.
    int64_t pages = int64_t{machine.free_count} + machine.inactive_count + machine.purgeable_count;
    return pages * static_cast<int64_t>(vm_kernel_page_size);
}

std::string processor() {
    utsname names{};
    std::string machine = ::uname(&names) == 0 ? names.machine : "";
    // As `uname -p`, which Python asks.
    return machine + (machine == "arm64" ? " arm" : " i386");
}

std::string processor_model() {
    char model[256] = "";
    size_t size = sizeof model;
    return ::sysctlbyname("machdep.cpu.brand_string", model, &size, nullptr, 0) == 0 ? model : "";
}

int physical_cores() {
    int cores = 0;
    size_t size = sizeof cores;
    if (::sysctlbyname("hw.physicalcpu", &cores, &size, nullptr, 0) == 0 && cores > 0) return cores;
    unsigned threads = std::thread::hardware_concurrency();
    return threads ? static_cast<int>(threads) : 1;
}

}  // namespace ebca::internal::platform
