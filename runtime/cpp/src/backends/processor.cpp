#include "backends/processor.hpp"

#include <sys/utsname.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <system_error>
#include <thread>

#include "contract/file.hpp"

namespace ebca::internal {
namespace {

std::string stripped(const std::string& line) {
    size_t begin = line.find_first_not_of(" \t\r\n");
    return begin == line.npos ? "" : line.substr(begin, line.find_last_not_of(" \t\r\n") - begin + 1);
}

bool starts_with(const std::string& line, const char* prefix) {
    return line.rfind(prefix, 0) == 0;
}

}  // namespace

std::string processor() {
    utsname names{};
    std::string name = uname(&names) == 0 ? names.machine : "";
    std::ifstream file = open_file("/proc/cpuinfo");
    // Without memory a line would be cut off in silence.
    file.exceptions(std::ios_base::badbit);
    for (std::string line; std::getline(file, line);) {
        if (!starts_with(line, "model name") && !starts_with(line, "flags")) continue;
        size_t colon = line.find(':');
        name += " " + (colon == line.npos ? std::string() : stripped(line.substr(colon + 1)));
        if (starts_with(line, "flags")) break;
    }
    return name;
}

int physical_cores() {
    // Threads of one core name the same list.
    std::set<std::string> cores;
    std::error_code failure;
    for (const auto& entry : std::filesystem::directory_iterator("/sys/devices/system/cpu", failure)) {
        const std::string name = entry.path().filename().string();
        if (!starts_with(name, "cpu") || name.size() < 4 || name.find_first_not_of("0123456789", 3) != name.npos) {
            continue;
        }
        for (const char* list : {"topology/core_cpus_list", "topology/thread_siblings_list"}) {
            std::ifstream file = open_file(entry.path() / list);
            file.exceptions(std::ios_base::badbit);
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

}  // namespace ebca::internal
