// Files that are read.
#pragma once

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <new>

namespace ebca::internal {

// A stream of the file's bytes, in a failed state if it cannot be opened. std::bad_alloc where memory is why.
inline std::ifstream open_file(const std::filesystem::path& path) {
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    if (!file && errno == ENOMEM) throw std::bad_alloc();
    return file;
}

}  // namespace ebca::internal
