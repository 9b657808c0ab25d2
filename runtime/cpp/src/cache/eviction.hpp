// The bound of the user's cache, as engines/cache/storage.py keeps it.
#pragma once

#include <filesystem>
#include <vector>

#include "cache/locks.hpp"

namespace ebca::internal {

// Bound of the cache in bytes: EBCA_CACHE_LIMIT_GB, else 40 GB. ParameterError if it is not a number.
double cache_limit();

// Delete the folders of the cache unused for longest until it is within its bound; never those to keep, those that
// somebody writes or those that are in use.
void evict(const std::filesystem::path& root, const std::vector<std::filesystem::path>& keep);

// Says that a folder of the cache is in use for as long as the result lives, to every process. Hold the lock of the
// folder meanwhile. filesystem_error: it cannot be written.
FileLock use_folder(const std::filesystem::path& folder);

// Whether somebody said so.
bool is_in_use(const std::filesystem::path& folder);

}  // namespace ebca::internal
