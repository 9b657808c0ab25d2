// An engine directory whose files the host gives, from an archive or from memory, as a folder of the user's cache:
// inference libraries read weights from files.
//
//     <cache>/unpacked-<key>/    an engine directory like any other; the manifest comes last
//     .../engine.json            marks it as the cache's own, so that it is evicted with all else that was unused
//     .../.lock                  held while it is written
//
// The key covers the manifest, which has the digests of all files. So a later open reads the manifest alone.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "cache/locks.hpp"
#include "cache/temporary.hpp"
#include "log.hpp"

namespace ebca::internal {

// Copies up to `size` bytes of a file from `offset` on and returns how many: 0 at its end, less than that if it cannot
// be read.
using ReadFile = std::function<int64_t(const std::string& file, int64_t offset, void* buffer, int64_t size)>;

// In use, so that nobody evicts it, for as long as the object lives.
class UnpackedDirectory {
  public:
    // Copies what is missing or damaged. Without a writable cache it is a temporary folder, with one warning.
    // cache: empty: `cache_folder()`. EngineError, ParameterError: what `read` gives is no engine directory.
    UnpackedDirectory(const ReadFile& read, const std::filesystem::path& cache, const Log& log);

    const std::filesystem::path& path() const { return path_; }
    bool is_temporary() const { return temporary_ != nullptr; }

  private:
    std::filesystem::path path_;
    std::unique_ptr<TemporaryFolder> temporary_;
    std::optional<FileLock> use_;
};

}  // namespace ebca::internal
