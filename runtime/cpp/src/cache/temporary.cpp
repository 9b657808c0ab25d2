#include "cache/temporary.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <string>
#include <system_error>

namespace ebca::internal {
namespace fs = std::filesystem;
namespace {

// Keep equal to engines/cache/temporary.py.
constexpr const char* kPrefix = "ebca-prepared-";
constexpr const char* kAlive = ".alive";
constexpr time_t kYoungSeconds = 60;

// Remove this user's folders whose process has ended.
void remove_abandoned(const fs::path& parent) {
    std::error_code failure;
    for (const auto& entry : fs::directory_iterator(parent, failure)) {
        struct stat info{};
        if (entry.path().filename().string().rfind(kPrefix, 0) != 0) continue;
        if (::lstat(entry.path().c_str(), &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != ::geteuid()) continue;
        if (std::time(nullptr) - info.st_mtime < kYoungSeconds) continue;
        try {
            FileLock alive(entry.path() / kAlive);
            if (alive.held()) fs::remove_all(entry.path(), failure);
        } catch (const fs::filesystem_error&) {
            // Somebody else removes it.
        }
    }
}

}  // namespace

fs::path make_folder(const fs::path& prefix) {
    std::string pattern = prefix.string() + "XXXXXX";
    if (!::mkdtemp(pattern.data())) {
        throw fs::filesystem_error("cannot make a folder", prefix, std::error_code(errno, std::generic_category()));
    }
    return pattern;
}

TemporaryFolder::TemporaryFolder() {
    fs::path parent = fs::absolute(fs::temp_directory_path());
    remove_abandoned(parent);
    path_ = make_folder(parent / kPrefix);
    alive_.emplace(path_ / kAlive);
}

TemporaryFolder::~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

}  // namespace ebca::internal
