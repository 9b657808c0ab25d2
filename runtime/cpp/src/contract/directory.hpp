// An engine directory on disk: its manifest, and whether its files are the ones that were written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "contract/manifest.hpp"

namespace ebca {

// A directory whose manifest is valid and whose files all exist with the right size. Contents are checked by `verify`,
// once per file before it is used for the first time.
struct EngineDirectory {
    std::filesystem::path path;
    Manifest manifest;

    std::filesystem::path file(const std::string& name) const { return path / name; }

    // EngineError where one of these files is missing, truncated or changed; the message names it.
    void verify(const std::vector<std::string>& names) const;

    // The same for sizes alone.
    void check_size(const std::string& name) const;
};

// EngineError where it does not exist or is not a complete engine directory.
EngineDirectory open_directory(const std::filesystem::path& path);

// More than any manifest or tokenizer has: what is larger is not read into memory.
constexpr int64_t kLargestText = int64_t{64} << 20;

// The bytes of a regular file. EngineError where it cannot be read or is larger.
std::string read_file(const std::filesystem::path& path, int64_t largest = INT64_MAX);

}  // namespace ebca
