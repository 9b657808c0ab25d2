// Files of the user's cache.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace ebca::internal {

// Keep equal to engines/cache/storage.py and store.py: the file that marks a folder as the cache's own, and the one
// that is locked while somebody writes there.
inline constexpr const char* kMarker = "engine.json";
inline constexpr const char* kLock = ".lock";

// Where the cache cannot hold something.
inline constexpr const char* kCacheRemedy = "set EBCA_CACHE_DIR to a writable folder with room";

// Since the epoch, as `platform::FileFacts::mtime_ns` counts.
int64_t seconds_now();

// Remove what is in the place of a file and is none: nothing can be renamed to a folder, and reading a pipe may never
// end.
void make_way(const std::filesystem::path& file);

// Complete or not at all: filesystem_error.
void write_atomically(const std::filesystem::path& path, const std::string& contents);

}  // namespace ebca::internal
