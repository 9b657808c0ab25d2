#include "cache/locks.hpp"

#include <chrono>
#include <system_error>
#include <thread>

namespace ebca::internal {
namespace fs = std::filesystem;
namespace {

constexpr std::chrono::seconds kWait{600};
constexpr std::chrono::milliseconds kTick{50};

}  // namespace

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

}  // namespace ebca::internal
