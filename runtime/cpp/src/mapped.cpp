#include "mapped.hpp"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <mutex>
#include <set>
#include <string>
#include <system_error>

namespace ebca {

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
    std::ifstream smaps("/proc/self/smaps");
    unsigned long start = 0, end = 0;
    bool ours = false;
    for (std::string line; std::getline(smaps, line);) {
        unsigned long low = 0, high = 0;
        int path = 0;
        // address permissions offset device inode path
        if (std::sscanf(line.c_str(), "%lx-%lx %*s %*s %*s %*s %n", &low, &high, &path) == 2 && high) {
            start = low, end = high;
            ours = path > 0 && names.count(line.substr(static_cast<size_t>(path))) > 0;
        } else if (ours && line.rfind("Anonymous:", 0) == 0) {
            // A page that was written to is no longer the file's: dropping it would lose what was written.
            unsigned long written = 1;
            if (std::sscanf(line.c_str(), "Anonymous: %lu", &written) == 1 && written == 0) {
                madvise(reinterpret_cast<void*>(start), end - start, MADV_DONTNEED);
            }
        }
    }
}

}  // namespace ebca
