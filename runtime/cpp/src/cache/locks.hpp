// Locks between processes, on files, as engines/cache/locks.py has them. The system releases them when a process ends,
// however it ends.
#pragma once

#include <filesystem>

#include "platform/platform.hpp"

namespace ebca::internal {

// The lock of a file, which is made if it is missing.
class FileLock {
  public:
    // Without waiting; `held` says whether it was free. filesystem_error: the file cannot be made.
    explicit FileLock(const std::filesystem::path& file) : file_(file), held_(file_.lock()) {}

    // Waits for another holder, for ten minutes at most: filesystem_error (timed_out).
    static FileLock wait(const std::filesystem::path& file);

    bool held() const { return held_; }

  private:
    platform::OpenFile file_;
    bool held_;
};

}  // namespace ebca::internal
