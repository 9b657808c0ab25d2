// Locks between processes, on files, as engines/cache/locks.py has them. The system releases them when a process ends,
// however it ends.
#pragma once

#include <filesystem>

namespace ebca::internal {

// The lock of a file, which is made if it is missing.
class FileLock {
  public:
    // Without waiting; `held` says whether it was free. filesystem_error: the file cannot be made.
    explicit FileLock(const std::filesystem::path& file);

    // Waits for another holder, for ten minutes at most: filesystem_error (timed_out).
    static FileLock wait(const std::filesystem::path& file);

    FileLock(FileLock&& other) noexcept : file_(other.file_), held_(other.held_) { other.file_ = -1; }
    FileLock(const FileLock&) = delete;
    FileLock& operator=(const FileLock&) = delete;
    ~FileLock();

    bool held() const { return held_; }

  private:
    int file_;
    bool held_ = true;
};

}  // namespace ebca::internal
