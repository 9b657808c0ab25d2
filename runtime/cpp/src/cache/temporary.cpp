#include "cache/temporary.hpp"

#include <string>
#include <system_error>

#include "cache/files.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace fs = std::filesystem;
namespace {

// Keep equal to engines/cache/temporary.py.
constexpr const char* kPrefix = "ebca-prepared-";
constexpr const char* kAlive = ".alive";
constexpr int64_t kYoungSeconds = 60;

// Remove this user's folders whose process has ended.
void remove_abandoned_folders(const fs::path& parent) {
    std::error_code failure;
    const int64_t now = seconds_now();
    for (const fs::path& path : platform::entries_of(parent)) {
        if (platform::to_utf8(path.filename()).rfind(kPrefix, 0) != 0) continue;
        if (!platform::is_own_folder(path)) continue;
        if (now - platform::facts_of(path).mtime_ns / 1000000000 < kYoungSeconds) continue;
        try {
            FileLock alive(path / kAlive);
            if (alive.held()) fs::remove_all(path, failure);
        } catch (const fs::filesystem_error&) {
            // Somebody else removes it.
        }
    }
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
    fs::path parent = fs::absolute(fs::temp_directory_path());
    remove_abandoned_folders(parent);
    path_ = platform::make_folder(parent / kPrefix);
    alive_.emplace(path_ / kAlive);
}

TemporaryFolder::~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

}  // namespace ebca::internal
