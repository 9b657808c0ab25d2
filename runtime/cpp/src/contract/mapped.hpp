// Dropping the pages of mapped files that are no longer needed in memory.
#pragma once

#include <filesystem>
#include <shared_mutex>
#include <vector>

namespace ebca::internal {

// Drop the resident pages of every unchanged mapping of these files. The kernel reads a page from the file again when
// it is touched, so this changes memory and time, never a value.
void forget(const std::vector<std::filesystem::path>& files);

// Held (shared) while such files are mapped or unmapped. `forget` works on addresses: if a file were unmapped
// meanwhile, they could belong to the heap by then, and dropping those pages would zero it. One per process, as
// addresses are.
std::shared_mutex& mappings();

}  // namespace ebca::internal
