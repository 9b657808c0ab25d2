#include "cache/locks.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <system_error>
#include <thread>

namespace ebca::internal {
namespace fs = std::filesystem;
namespace {

constexpr std::chrono::seconds kWait{600};
constexpr std::chrono::milliseconds kTick{50};

}  // namespace

FileLock::FileLock(const fs::path& file) : file_(::open(file.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666)) {
    if (file_ < 0) {
        throw fs::filesystem_error("cannot lock", file, std::error_code(errno, std::generic_category()));
    }
    // On a file system without locks, work may be done twice, which is harmless.
    held_ = ::flock(file_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
}

FileLock FileLock::wait(const fs::path& file) {
    for (auto end = std::chrono::steady_clock::now() + kWait;;) {
        FileLock lock(file);
        if (lock.held()) return lock;
        if (std::chrono::steady_clock::now() >= end) {
            throw fs::filesystem_error("another process holds it", file, std::make_error_code(std::errc::timed_out));
        }
        std::this_thread::sleep_for(kTick);
    }
}

FileLock::~FileLock() {
    if (file_ >= 0) ::close(file_);
}

}  // namespace ebca::internal
