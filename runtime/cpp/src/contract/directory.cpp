#include "contract/directory.hpp"

#include <fstream>
#include <sstream>
#include <system_error>

#include "contract/sha256.hpp"
#include "error.hpp"

namespace ebca {
namespace fs = std::filesystem;

void EngineDirectory::check_size(const std::string& name) const {
    const FileRecord& record = manifest.files.at(name);
    std::error_code failure;
    auto size = fs::file_size(file(name), failure);
    if (failure) {
        throw EngineError(text("'", file(name).string(), "' is missing"),
                          "copy the engine directory again or export it again");
    }
    if (size != static_cast<uintmax_t>(record.size)) {
        throw EngineError(
            text("'", file(name).string(), "' has ", size, " bytes instead of ", record.size, ": truncated or changed"),
            "export the engine again");
    }
}

void EngineDirectory::verify(const std::vector<std::string>& names) const {
    for (const std::string& name : names) {
        check_size(name);
        if (sha256_file(file(name)) != manifest.files.at(name).sha256) {
            throw EngineError(text("'", file(name).string(), "' is corrupted: its contents are not what was exported"),
                              "export the engine again");
        }
    }
}

EngineDirectory open_directory(const fs::path& path) {
    std::error_code failure;
    if (!fs::is_directory(path, failure)) {
        throw EngineError(text("engine directory '", path.string(), "' does not exist"),
                          "make one with `ebca-export --output-dir`");
    }
    fs::path file = path / "manifest.json";
    if (!fs::is_regular_file(file, failure)) {
        throw EngineError(
            text("'", path.string(), "' has no manifest.json: not an engine directory, or its export did not finish"),
            "run `ebca-export` again to finish it");
    }
    EngineDirectory directory;
    directory.path = fs::absolute(path);
    try {
        directory.manifest = parse_manifest(read_file(file, kLargestText));
    } catch (const EngineError& error) {
        throw EngineError(text("'", file.string(), "': ", error.problem()), error.remedy());
    }
    for (const auto& [name, record] : directory.manifest.files) directory.check_size(name);
    return directory;
}

std::string read_file(const fs::path& path, int64_t largest) {
    std::error_code unknown;
    auto size = fs::file_size(path, unknown);
    if (!unknown && size > static_cast<uintmax_t>(largest)) {
        throw EngineError(text("'", path.string(), "' has ", size, " bytes, more than any that ebca writes"),
                          "export it again");
    }
    std::ifstream file(path, std::ios::binary);
    std::ostringstream bytes;
    if (!file || !(bytes << file.rdbuf()) || file.bad()) {
        std::error_code failure;
        if (!file || fs::file_size(path, failure) != 0) {
            throw EngineError(text("'", path.string(), "' cannot be read"));
        }
    }
    return bytes.str();
}

}  // namespace ebca
