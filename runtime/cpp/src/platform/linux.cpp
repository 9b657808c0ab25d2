#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <locale>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "numerals.hpp"
#include "platform/platform.hpp"

namespace ebca::internal::platform {
namespace fs = std::filesystem;
namespace {

struct Mapping {
    unsigned long start = 0, end = 0;
    bool shared = false;
    std::string file;

    void drop() const { madvise(reinterpret_cast<void*>(start), end - start, MADV_DONTNEED); }
};

// A line of /proc/self/maps: address permissions offset device inode path
std::optional<Mapping> mapping(const std::string& line) {
    Mapping found;
    char permissions[5] = "";
    int path = 0;
    const char* format = "%lx-%lx %4s %*s %*s %*s %n";
    if (std::sscanf(line.c_str(), format, &found.start, &found.end, permissions, &path) != 3) return std::nullopt;
    found.shared = permissions[3] == 's';
    if (path > 0) found.file = line.substr(static_cast<size_t>(path));
    return found;
}

// A page of a private mapping that was written to is no longer the file's: dropping it would lose the changes.
void drop_unchanged(const std::set<std::string>& names) {
    std::ifstream smaps("/proc/self/smaps");
    std::optional<Mapping> current;
    for (std::string line; std::getline(smaps, line);) {
        if (auto found = mapping(line)) {
            current = found;
        } else if (current && !current->shared && names.count(current->file) && line.rfind("Anonymous:", 0) == 0) {
            unsigned long written = 1;
            if (std::sscanf(line.c_str(), "Anonymous: %lu", &written) == 1 && written == 0) current->drop();
        }
    }
}

constexpr int64_t kKilobyte = 1024;

// A host's locale could read digits and dots otherwise. Without memory, a line would be cut off in silence.
std::ifstream opened(const fs::path& path) {
    std::ifstream file;
    file.imbue(std::locale::classic());
    file.exceptions(std::ios_base::badbit);
    file.open(path);
    return file;
}

// The numbers of a file with lines such as "MemAvailable:  123 kB" or "inactive_file 123".
std::map<std::string, int64_t> numbers(const fs::path& path) {
    std::map<std::string, int64_t> found;
    std::ifstream file = opened(path);
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
    std::ifstream file = opened(path);
    int64_t value = 0;
    // "max" is no number.
    return file >> value ? std::optional(value) : std::nullopt;
}

// What the control groups of this process leave.
int64_t room_of_groups(int64_t swap) {
    int64_t room = INT64_MAX;
    std::ifstream file = opened("/proc/self/cgroup");
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

std::string stripped(const std::string& line) {
    size_t begin = line.find_first_not_of(" \t\r\n");
    return begin == line.npos ? "" : line.substr(begin, line.find_last_not_of(" \t\r\n") - begin + 1);
}

// The entry of the first processor in /proc/cpuinfo.
std::map<std::string, std::string> processor_facts() {
    std::map<std::string, std::string> found;
    std::ifstream file = opened("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        size_t colon = line.find(':');
        if (colon == line.npos) break;
        found[stripped(line.substr(0, colon))] = stripped(line.substr(colon + 1));
    }
    return found;
}

}  // namespace

fs::path user_cache() {
    if (std::string caches = variable("XDG_CACHE_HOME"); !caches.empty()) return to_path(caches) / "ebca";
    std::string home = variable("HOME");
    return home.empty() ? fs::path() : to_path(home) / ".cache" / "ebca";
}

std::vector<std::string> onnxruntime_names() {
    return {"libonnxruntime.so.1", "libonnxruntime.so"};
}

const char* openvino_name() {
    return "libopenvino_c.so";
}

const char* cuda_driver_name() {
    return "libcuda.so.1";
}

std::shared_mutex& mappings() {
    static std::shared_mutex lock;
    return lock;
}

void forget(const std::vector<fs::path>& files) {
    std::set<std::string> names;
    for (const auto& file : files) {
        std::error_code failure;
        names.insert(fs::weakly_canonical(file, failure).string());
    }
    std::unique_lock held(mappings());
    bool some_are_private = false;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        auto found = mapping(line);
        if (!found || !names.count(found->file)) continue;
        if (found->shared) {
            found->drop();
        } else {
            some_are_private = true;
        }
    }
    // That would read every page of the process.
    if (some_are_private) drop_unchanged(names);
}

void trim_heap() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

int64_t machine_bytes() {
    return numbers("/proc/meminfo")["MemTotal"] * kKilobyte;
}

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

std::string processor() {
    utsname names{};
    std::string out = uname(&names) == 0 ? names.machine : "";
    const std::map<std::string, std::string> facts = processor_facts();
    for (const char* name : {"model name", "flags"}) {
        if (auto found = facts.find(name); found != facts.end()) out += " " + found->second;
    }
    return out;
}

std::string processor_model() {
    return processor_facts()["model name"];
}

int physical_cores() {
    // Threads of one core name the same list.
    std::set<std::string> cores;
    for (const fs::path& path : entries_of("/sys/devices/system/cpu")) {
        const std::string name = path.filename().string();
        if (name.rfind("cpu", 0) != 0 || name.size() < 4 || name.find_first_not_of("0123456789", 3) != name.npos) {
            continue;
        }
        for (const char* list : {"topology/core_cpus_list", "topology/thread_siblings_list"}) {
            std::ifstream file = opened(path / list);
            if (std::string line; std::getline(file, line)) {
                cores.insert(line);
                break;
            }
        }
    }
    if (!cores.empty()) return static_cast<int>(cores.size());
    unsigned threads = std::thread::hardware_concurrency();
    return threads ? static_cast<int>(threads) : 1;
}

}  // namespace ebca::internal::platform
