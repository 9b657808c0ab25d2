#include "contract/directory.hpp"

#include <system_error>

#include "contract/file.hpp"
#include "contract/limits.hpp"
#include "contract/sha256.hpp"
#include "error.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace fs = std::filesystem;

namespace {

// Bytes of a regular file, or of the one that a link leads to. Where a link leads does not matter, since size and
// digest decide whether the file is used; what is no file could block, or have no end.
int64_t regular_size(const fs::path& path) {
    using platform::FileKind;
    const platform::FileFacts found = platform::facts_of(path);
    if (found.kind == FileKind::regular) return found.size;
    if (found.kind == FileKind::denied) {
        throw EngineError(text("'", platform::to_utf8(path), "' cannot be read: ", found.failure.message()),
                          "check its permissions");
    }
    const char* what = found.kind == FileKind::missing    ? "missing"
                       : found.kind == FileKind::dangling ? "a link to a file that is not there"
                       : found.kind == FileKind::folder   ? "a directory instead of a file"
                       : found.kind == FileKind::pipe     ? "a pipe instead of a file"
                                                          : "a device instead of a file";
    throw EngineError(text("'", platform::to_utf8(path), "' is ", what),
                      "copy the whole engine directory or export it again");
}

EngineError corrupted(const fs::path& path) {
    return EngineError(text("'", platform::to_utf8(path), "' is corrupted: its contents are not what was exported"),
                       "export the engine again");
}

}  // namespace

void EngineDirectory::check_size(const std::string& name) const {
    int64_t size = regular_size(file(name)), expected = manifest.files.at(name).size;
    if (size != expected) {
        throw EngineError(text("'", platform::to_utf8(file(name)), "' has ", size, " bytes instead of ", expected,
                               ": truncated or changed"),
                          "export the engine again");
    }
}

void EngineDirectory::verify(const std::vector<std::string>& names) const {
    for (const std::string& name : names) {
        check_size(name);
        if (sha256_file(file(name)) != manifest.files.at(name).sha256) throw corrupted(file(name));
    }
}

std::string EngineDirectory::read(const std::string& name) const {
    check_size(name);
    std::string contents = read_file(file(name), limits::manifest_bytes);
    if (sha256(contents) != manifest.files.at(name).sha256) throw corrupted(file(name));
    return contents;
}

EngineDirectory open_directory(const fs::path& path) {
    std::error_code failure;
    if (!fs::is_directory(path, failure)) {
        throw EngineError(text("engine directory '", platform::to_utf8(path), "' does not exist"),
                          "make one with `ebca-export --output-dir`");
    }
    fs::path file = path / kManifestFile;
    if (!fs::exists(fs::symlink_status(file, failure))) {
        throw EngineError(text("'", platform::to_utf8(path),
                               "' has no manifest.json: not an engine directory, or its export did not finish"),
                          "run `ebca-export` again to finish it");
    }
    EngineDirectory directory;
    directory.path = fs::absolute(path);
    directory.manifest = parse_manifest(read_file(file, limits::manifest_bytes), "'" + platform::to_utf8(file) + "'");
    for (const auto& [name, record] : directory.manifest.files) directory.check_size(name);
    return directory;
}

std::string read_file(const fs::path& path, int64_t largest) {
    int64_t size = regular_size(path);
    if (size > largest) {
        throw EngineError(text("'", platform::to_utf8(path), "' has ", size, " bytes, more than any that ebca writes"),
                          "export the engine again");
    }
    std::ifstream file = open_file(path);
    // Into memory of its own: a stream of texts that runs out of memory fails as if the file could not be read.
    std::string bytes(static_cast<size_t>(size), '\0');
    file.read(bytes.data(), size);
    if (!file) throw EngineError(text("'", platform::to_utf8(path), "' cannot be read"), "check its permissions");
    return bytes;
}

}  // namespace ebca::internal
