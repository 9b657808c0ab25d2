// Dropping the pages of mapped files that are no longer needed in memory.
#pragma once

#include <filesystem>
#include <shared_mutex>
#include <vector>

namespace ebca {

// Drop the resident pages of every unchanged mapping of these files. The kernel reads a page from the file again when
// it is touched, so this changes memory and time, never a value.
void forget(const std::vector<std::filesystem::path>& files);

// Held (shared) by whoever maps or unmaps such files. `forget` works on addresses: were a file unmapped meanwhile, they
// could be somebody's heap by then, and dropping pages there would zero it. One for the process, as its addresses are.
std::shared_mutex& mappings();

}  // namespace ebca
