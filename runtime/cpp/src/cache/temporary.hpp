// Folders for what cannot be kept in the user's cache, as engines/cache/temporary.py has them: both runtimes remove
// what killed processes of either left behind.
#pragma once

#include <filesystem>
#include <optional>

#include "cache/locks.hpp"

namespace ebca::internal {

// Removed with the object. filesystem_error: there is no writable folder for temporary files.
class TemporaryFolder {
  public:
    TemporaryFolder();
    ~TemporaryFolder();
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;

    const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
    std::optional<FileLock> alive_;
};

}  // namespace ebca::internal
