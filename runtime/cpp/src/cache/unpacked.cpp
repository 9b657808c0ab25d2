#include "cache/unpacked.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <new>
#include <system_error>
#include <vector>

#include "cache/eviction.hpp"
#include "cache/files.hpp"
#include "cache/prepared.hpp"
#include "contract/directory.hpp"
#include "contract/json.hpp"
#include "contract/limits.hpp"
#include "contract/manifest.hpp"
#include "contract/sha256.hpp"
#include "error.hpp"
#include "parameters.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace fs = std::filesystem;
namespace {

constexpr int kUnpackedVersion = 1;
constexpr size_t kPieceBytes = size_t{1} << 20;
constexpr size_t kUnpackedKey = 24;  // hexadecimal digits
constexpr double kSpareBytes = 64e6;
constexpr const char* kCopying = ".copying";
constexpr const char* kAgain = "pack the engine directory again";

// A file of the host, piece by piece, until it ends or has more than `most` bytes; returns how many were read.
int64_t read_pieces(const ReadFile& read, const std::string& file, int64_t most,
                    const std::function<void(const char*, size_t)>& take) {
    std::vector<char> piece(kPieceBytes);
    for (int64_t at = 0;;) {
        // One byte more than there should be shows that there are more.
        const int64_t size = std::min(static_cast<int64_t>(piece.size()), most - at + 1);
        const int64_t count = size > 0 ? read(file, at, piece.data(), size) : 0;
        if (count < 0) {
            throw EngineError(text("the callback read has no '", file, "', or cannot read it at byte ", at),
                              "give it all files of the engine directory, by their paths in it");
        }
        if (count > size) throw rules::read_overran(count, size, file);
        if (!count) return at;
        take(piece.data(), static_cast<size_t>(count));
        at += count;
    }
}

std::string read_manifest_file(const ReadFile& read) {
    std::string bytes;
    read_pieces(read, kManifestFile, limits::manifest_bytes,
                [&](const char* from, size_t count) { bytes.append(from, count); });
    return bytes;
}

// A manifest has been checked for names that lead out of the directory. Here they become files that are written, so
// it is checked once more, and that they are none of the cache's own.
void check_file_name(const std::string& name) {
    const fs::path path = platform::to_path(name);
    const bool leads_out = path.has_root_path() || std::find(path.begin(), path.end(), "..") != path.end();
    if (leads_out || name.empty() || name[0] == '.' || name == kMarker || name == kManifestFile) {
        throw EngineError(text("the manifest names '", name, "', which no file of an engine directory is called"),
                          "export the engine again");
    }
}

// The folder that the file is in, whatever is in the place of it.
void make_parents(const fs::path& folder, const fs::path& file) {
    fs::path parent = folder;
    for (const fs::path& part : file.lexically_relative(folder).parent_path()) {
        parent /= part;
        const fs::file_status found = fs::symlink_status(parent);
        if (fs::exists(found) && !fs::is_directory(found)) fs::remove(parent);
    }
    fs::create_directories(parent);
}

// The copy of an engine directory in one folder.
class Copy {
  public:
    Copy(const ReadFile& read, const std::string& bytes, const Manifest& manifest, fs::path folder)
        : read_(read), bytes_(bytes), manifest_(manifest), folder_(std::move(folder)) {}

    // What a look at the folder finds. Files that changed since the manifest was written are read.
    struct State {
        bool has_manifest;
        bool all_older;  // than the manifest: nothing had to be read
        std::vector<std::string> missing;

        bool is_complete() const { return has_manifest && missing.empty(); }
    };
    State state() const;

    // Hold the lock of the folder. What fails leaves nothing that was copied.
    void complete(const State& found, const Log& log) const;

  private:
    fs::path file(const std::string& name) const { return folder_ / platform::to_path(name); }
    int64_t written() const;
    void copy(const std::string& name) const;

    const ReadFile& read_;
    const std::string& bytes_;
    const Manifest& manifest_;
    fs::path folder_;
};

// When the manifest was written; -1 if it is not there, or another one.
int64_t Copy::written() const {
    try {
        if (read_file(folder_ / kManifestFile, limits::manifest_bytes) != bytes_) return -1;
    } catch (const EngineError&) {
        return -1;
    }
    return platform::facts_of(folder_ / kManifestFile).mtime_ns;
}

Copy::State Copy::state() const {
    const int64_t written = this->written();
    State out{written >= 0, true, {}};
    for (const auto& [name, record] : manifest_.files) {
        const platform::FileFacts found = platform::facts_of(file(name));
        if (found.kind == platform::FileKind::regular && found.size == record.size) {
            // The manifest was written last: what is older was verified, and has not changed since.
            if (out.has_manifest && found.mtime_ns <= written) continue;
            out.all_older = false;
            try {
                if (sha256_file(file(name)) == record.sha256) continue;
            } catch (const EngineError&) {
                // It is copied again.
            }
        }
        out.missing.push_back(name);
    }
    return out;
}

void Copy::copy(const std::string& name) const {
    const FileRecord& record = manifest_.files.at(name);
    const fs::path made = folder_ / kCopying;
    make_way(made);
    errno = 0;
    std::ofstream out(made, std::ios::binary | std::ios::trunc);
    Sha256 digest;
    auto check = [&] {
        if (!out && errno == ENOMEM) throw std::bad_alloc();
        if (!out) throw fs::filesystem_error("cannot write", made, {errno ? errno : EIO, std::generic_category()});
    };
    const int64_t size = read_pieces(read_, name, record.size, [&](const char* from, size_t count) {
        digest.update(from, count);
        errno = 0;
        out.write(from, static_cast<std::streamsize>(count));
        check();
    });
    errno = 0;
    out.close();
    check();
    if (size != record.size) {
        const char* more = size > record.size ? " or more" : "";
        throw EngineError(text("'", name, "' of the callback read has ", size, more, " bytes instead of ", record.size,
                               ": truncated or changed"),
                          kAgain);
    }
    if (digest.hex() != record.sha256) {
        throw EngineError(
            text("'", name, "' of the callback read is corrupted: its contents are not what was exported"), kAgain);
    }
    make_parents(folder_, file(name));
    make_way(file(name));
    fs::rename(made, file(name));
}

void Copy::complete(const State& found, const Log& log) const {
    try {
        json::Value marker;
        const json::TakenApart without_memory(marker);
        marker["version"] = kUnpackedVersion;
        marker["backend"] = "unpacked";
        marker["engine"] = manifest_.name;
        write_atomically(folder_ / kMarker, json::dumped(marker));
        double needed = 0;
        for (const std::string& name : found.missing) needed += static_cast<double>(manifest_.files.at(name).size);
        const bool copies = !found.missing.empty();
        if (copies && static_cast<double>(fs::space(folder_).available) < needed + kSpareBytes) {
            throw fs::filesystem_error("cannot copy", folder_, std::make_error_code(std::errc::no_space_on_device));
        }
        if (log && copies) {
            log(LogLevel::info, text("copying ", found.missing.size(), " files of the engine to '",
                                     platform::to_utf8(folder_), "', ", std::ceil(needed / 1e6), " MB"));
        }
        for (const std::string& name : found.missing) copy(name);
        write_atomically(folder_ / kManifestFile, bytes_);
    } catch (...) {
        std::error_code ignored;
        fs::remove(folder_ / kCopying, ignored);
        if (!found.has_manifest && !is_in_use(folder_)) fs::remove_all(folder_, ignored);
        throw;
    }
}

// The folder is complete then; the result keeps it from being evicted. None in a cache that cannot be written, where
// nothing is evicted either.
std::optional<FileLock> unpacked(const Copy& copy, const fs::path& folder, const Log& log) {
    std::optional<FileLock> lock;
    try {
        fs::create_directories(folder);
        make_way(folder / kLock);
        lock.emplace(FileLock::wait(folder / kLock));
    } catch (const fs::filesystem_error&) {
        if (copy.state().is_complete()) return std::nullopt;
        throw;
    }
    const Copy::State found = copy.state();
    // Rewriting the manifest says that files which are younger were verified.
    if (!found.is_complete() || !found.all_older) copy.complete(found, log);
    // Records when it was last used.
    std::error_code ignored;
    fs::last_write_time(folder, fs::file_time_type::clock::now(), ignored);
    try {
        return use_folder(folder);
    } catch (const fs::filesystem_error&) {
        return std::nullopt;
    }
}

}  // namespace

UnpackedDirectory::UnpackedDirectory(const ReadFile& read, const fs::path& cache, const Log& log) {
    const std::string bytes = read_manifest_file(read);
    const Manifest manifest = parse_manifest(bytes, text("'", kManifestFile, "' of the callback read"));
    for (const auto& [name, record] : manifest.files) check_file_name(name);
    std::string where = "the user's cache", failure;
    try {
        fs::path root = fs::absolute(cache.empty() ? cache_folder() : cache);
        path_ = root / ("unpacked-" + sha256(bytes).substr(0, kUnpackedKey));
        where = text("'", platform::to_utf8(path_), "'");
    } catch (const EngineError& error) {
        failure = error.problem();
    }
    // Somebody may delete the folder meanwhile, once.
    for (bool again : {false, true}) {
        if (path_.empty()) break;
        try {
            auto use = unpacked(Copy(read, bytes, manifest, path_), path_, log);
            if (use) use_.emplace(std::move(*use));
            return;
        } catch (const fs::filesystem_error& error) {
            failure = error.code().message();
            if (again || error.code() != std::errc::no_such_file_or_directory) break;
        }
    }
    const std::string problem = text("the files of the engine cannot be kept in ", where, " (", failure, ")");
    try {
        temporary_ = std::make_unique<TemporaryFolder>();
        path_ = temporary_->path() / "engine";
        fs::create_directories(path_);
        const Copy copy(read, bytes, manifest, path_);
        copy.complete(copy.state(), log);
    } catch (const fs::filesystem_error& error) {
        throw EngineError(text(problem, ", nor in a temporary folder (", error.code().message(), ")"), kCacheRemedy);
    }
    if (log) {
        log(LogLevel::warning,
            text(problem, ": this engine uses a temporary folder, and the next one copies and prepares again; ",
                 kCacheRemedy));
    }
}

}  // namespace ebca::internal
