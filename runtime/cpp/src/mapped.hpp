// Pages of mapped files that nobody needs in memory any more.
#pragma once

#include <filesystem>
#include <vector>

namespace ebca {

// Drop the resident pages of every unchanged mapping of these files. The kernel reads a page from the file again when
// it is touched, so this changes memory and time, never a value.
void forget(const std::vector<std::filesystem::path>& files);

}  // namespace ebca
