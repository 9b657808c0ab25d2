#include "memory.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <map>
#include <optional>
#include <vector>

#include "contract/tensor.hpp"
#include "execution/arena.hpp"
#include "numerals.hpp"
#include "parameters.hpp"

namespace ebca::internal {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kKilobyte = 1024;

// The numbers of a file with lines such as "MemAvailable:  123 kB" or "inactive_file 123".
std::map<std::string, int64_t> numbers(const fs::path& path) {
    std::map<std::string, int64_t> found;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        ClassicWords words(line);
        std::string name;
        int64_t value = 0;
        if (!(words >> name >> value)) continue;
        if (name.back() == ':') name.pop_back();
        found[name] = value;
    }
    return found;
}

std::optional<int64_t> number(const fs::path& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    ClassicWords words(line);
    int64_t value = 0;
    // "max" is no number.
    return words >> value ? std::optional(value) : std::nullopt;
}

// What the control groups of this process leave.
int64_t room_of_groups(int64_t swap) {
    int64_t room = INT64_MAX;
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("0::/", 0) != 0) continue;
        const fs::path root = "/sys/fs/cgroup";
        fs::path group = (root / line.substr(4)).lexically_normal();
        for (;; group = group.parent_path()) {
            auto limit = number(group / "memory.max"), used = number(group / "memory.current");
            if (limit && used) {
                auto stat = numbers(group / "memory.stat");
                room = std::min(room, *limit - *used + stat["inactive_file"] + stat["active_file"] + swap);
            }
            if (group == root || !group.has_relative_path()) break;
        }
    }
    return room;
}

std::string shown(int64_t bytes) {
    ClassicText out;
    auto number = static_cast<double>(bytes);
    out << std::fixed << std::setprecision(1);
    if (number >= 1e12) {
        out << number / 1e12 << " TB";
    } else if (number >= 1e9) {
        out << number / 1e9 << " GB";
    } else {
        out << std::setprecision(0) << number / 1e6 << " MB";
    }
    return out.str();
}

int64_t arena_bytes(const UNetSpec& unet, const Sizes& sizes) {
    std::map<std::string, int64_t> bytes;
    for (const auto& [name, spec] : unet.tensors) bytes[name] = byte_size(evaluate(spec.shape, sizes), spec.dtype);
    std::vector<std::string> keep = unet.inputs;
    keep.insert(keep.end(), unet.outputs.begin(), unet.outputs.end());
    return lay_out(lifetimes(unet.steps, bytes, keep)).bytes;
}

}  // namespace

int64_t available_bytes() {
    auto machine = numbers("/proc/meminfo"), own = numbers("/proc/self/status");
    if (!machine.count("MemAvailable")) return INT64_MAX;
    int64_t swap = machine["SwapFree"] * kKilobyte;
    int64_t room = std::min(machine["MemAvailable"] * kKilobyte + swap, room_of_groups(swap));
    rlimit limit{};
    if (::getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        room = std::min(room, static_cast<int64_t>(limit.rlim_cur) - own["VmSize"] * kKilobyte);
    }
    return std::max<int64_t>(room + own["RssAnon"] * kKilobyte, 0);
}

void check_host_memory(const UNetSpec& unet, const Sizes& sizes, const std::string& what) {
    int64_t needed = arena_bytes(unet, sizes), available = available_bytes();
    if (needed > available) throw rules::memory_needed(shown(needed), "", what, shown(available));
}

}  // namespace ebca::internal
