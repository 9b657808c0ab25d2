// An engine directory on disk: its manifest, and whether its files are the ones that were written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "contract/manifest.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {

// Of an engine directory.
inline constexpr const char* kManifestFile = "manifest.json";

// A directory whose manifest is valid and whose files all exist with the right size. Contents are checked by `verify`
// and `read`; no file is used before one of them has seen it. Any file may be a link to a regular file.
struct EngineDirectory {
    std::filesystem::path path;
    Manifest manifest;

    std::filesystem::path file(const std::string& name) const { return path / platform::to_path(name); }

    // EngineError where one of these files is missing, truncated or changed; the message names it.
    void verify(const std::vector<std::string>& names) const;

    // The contents of a file that fits into memory, checked as `verify` does.
    std::string read(const std::string& name) const;

    // The same for sizes alone.
    void check_size(const std::string& name) const;
};

// EngineError where it does not exist or is not a complete engine directory.
EngineDirectory open_directory(const std::filesystem::path& path);

// The bytes of a regular file. EngineError where it cannot be read or is larger.
std::string read_file(const std::filesystem::path& path, int64_t largest = INT64_MAX);

}  // namespace ebca::internal
