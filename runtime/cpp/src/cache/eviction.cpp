#include "cache/eviction.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <system_error>

#include "cache/files.hpp"
#include "error.hpp"
#include "numerals.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace fs = std::filesystem;
namespace {

// Keep equal to engines/cache/storage.py.
constexpr double kDefaultLimitGb = 40.0;
constexpr int64_t kGraceSeconds = 60;
constexpr const char* kUse = ".use-";

struct StoredEngine {
    fs::path folder;
    double size;
    int64_t used;
};

// One for each user at a time. They stay, and the next user takes the first that is free: a file that is deleted could
// be locked by somebody who has just opened it.
fs::path use_file(const fs::path& folder, int index) {
    return folder / text(kUse, index);
}

// Bytes of all files in it. Other processes may be writing there: files that disappear meanwhile do not count.
double size_of(const fs::path& folder) {
    double total = 0;
    for (const fs::path& path : platform::entries_of(folder)) {
        std::error_code gone;
        if (fs::is_directory(fs::symlink_status(path, gone))) {
            total += size_of(path);
        } else if (auto size = fs::file_size(path, gone); !gone) {
            total += static_cast<double>(size);
        }
    }
    return total;
}

std::vector<StoredEngine> stored_engines(const fs::path& root) {
    std::vector<StoredEngine> engines;
    for (const fs::path& path : platform::entries_of(root)) {
        // The folder may be shared with others: only folders with the marker of ebca are its own.
        std::error_code gone;
        if (fs::is_symlink(path, gone) || !fs::is_regular_file(path / kMarker, gone)) continue;
        const int64_t used = platform::facts_of(path).mtime_ns / 1000000000;
        engines.push_back({path, size_of(path), used});
    }
    return engines;
}

// Whether it is gone.
bool remove_unused(const fs::path& folder) {
    std::error_code failure;
    try {
        const FileLock lock(folder / kLock);
        if (!lock.held() || is_in_use(folder)) return false;
        fs::remove_all(folder, failure);
    } catch (const fs::filesystem_error&) {
        return false;
    }
    return !failure;
}

}  // namespace

double cache_limit() {
    const std::string chosen = platform::variable("EBCA_CACHE_LIMIT_GB");
    if (chosen.empty()) return kDefaultLimitGb * 1e9;
    const platform::ClassicThread classic;
    char* end = nullptr;
    double value = std::strtod(chosen.c_str(), &end);
    if (end == chosen.c_str() || *end || std::isnan(value)) {
        throw ParameterError(text("EBCA_CACHE_LIMIT_GB is '", chosen, "'"), "give a number of gigabytes, e.g. 40");
    }
    return value * 1e9;
}

void evict(const fs::path& root, const std::vector<fs::path>& keep) {
    const double limit = cache_limit();
    std::vector<StoredEngine> engines = stored_engines(root);
    double total = 0;
    for (const StoredEngine& engine : engines) total += engine.size;
    std::sort(engines.begin(), engines.end(),
              [](const StoredEngine& a, const StoredEngine& b) { return a.used < b.used; });
    const int64_t now = seconds_now();
    for (const StoredEngine& engine : engines) {
        auto is_it = [&](const fs::path& kept) {
            std::error_code gone;
            return engine.folder == kept || fs::equivalent(engine.folder, kept, gone);
        };
        // A minute's grace: another process may be preparing it right now.
        if (total <= limit || now - engine.used < kGraceSeconds) continue;
        if (std::none_of(keep.begin(), keep.end(), is_it) && remove_unused(engine.folder)) total -= engine.size;
    }
}

FileLock use_folder(const fs::path& folder) {
    for (int index = 0;; ++index) {
        FileLock use(use_file(folder, index));
        if (use.held()) return use;
    }
}

bool is_in_use(const fs::path& folder) {
    for (int index = 0; platform::facts_of(use_file(folder, index)).kind == platform::FileKind::regular; ++index) {
        if (!FileLock(use_file(folder, index)).held()) return true;
    }
    return false;
}

}  // namespace ebca::internal
