#include "contract/mapped.hpp"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <system_error>

namespace ebca::internal {
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

}  // namespace

std::shared_mutex& mappings() {
    static std::shared_mutex lock;
    return lock;
}

void forget(const std::vector<std::filesystem::path>& files) {
    std::set<std::string> names;
    for (const auto& file : files) {
        std::error_code failure;
        names.insert(std::filesystem::weakly_canonical(file, failure).string());
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

}  // namespace ebca::internal
