#include "cache/prepared.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <system_error>
#include <thread>

#include "contract/json.hpp"
#include "contract/mapped.hpp"
#include "contract/sha256.hpp"
#include "error.hpp"

namespace ebca {
namespace fs = std::filesystem;
namespace {

using json::Value;

// Keep equal to engines/cache/prepared.py.
constexpr int kPreparedVersion = 1;
constexpr double kDefaultLimitGb = 40.0;
constexpr const char* kMarker = "engine.json";
constexpr size_t kKeyLength = 24;
constexpr int64_t kGraceSeconds = 60;

struct FileStat {
    int64_t size = -1;
    int64_t mtime_ns = 0;
};

// Size -1: there is no such file.
FileStat stat_of(const fs::path& path) {
    struct stat info{};
    if (::stat(path.c_str(), &info) != 0) return {};
    return {info.st_size, int64_t{info.st_mtim.tv_sec} * 1000000000 + info.st_mtim.tv_nsec};
}

Value as_json(const FileStat& found) {
    return {{"size", found.size}, {"mtime_ns", found.mtime_ns}};
}

std::string dumped(const Value& value) {
    return value.dump(-1, ' ', true, Value::error_handler_t::replace);
}

// Complete or not at all.
void write_atomically(const fs::path& path, const std::string& contents) {
    fs::path temporary = path;
    temporary += text(".", getpid(), ".", std::this_thread::get_id(), ".tmp");
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file << contents;
    file.close();
    if (!file) {
        fs::remove(temporary);
        throw fs::filesystem_error("cannot write", path, std::make_error_code(std::errc::io_error));
    }
    fs::rename(temporary, path);
}

// A folder name that no other process or thread uses.
fs::path work_folder(const fs::path& parent, const std::string& name) {
    std::string pattern = (parent / ("." + name + ".XXXXXX")).string();
    if (!mkdtemp(pattern.data())) {
        throw fs::filesystem_error("cannot make a folder", parent, std::error_code(errno, std::generic_category()));
    }
    return pattern;
}

// One thread or process at a time prepares a folder; the others wait and then find it prepared.
class FolderLock {
  public:
    explicit FolderLock(const fs::path& folder)
        : file_(::open((folder / ".lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666)) {
        // On a file system without locks, the work may be done twice, which is harmless.
        if (file_ >= 0) ::flock(file_, LOCK_EX);
    }
    ~FolderLock() {
        if (file_ >= 0) ::close(file_);
    }
    FolderLock(const FolderLock&) = delete;
    FolderLock& operator=(const FolderLock&) = delete;

  private:
    int file_;
};

// Bytes of all files in it. Other processes may be writing there: files that disappear meanwhile do not count.
double size_of(const fs::path& folder) {
    double total = 0;
    std::error_code gone;
    for (fs::recursive_directory_iterator at(folder, gone), end; !gone && at != end; at.increment(gone)) {
        std::error_code none;
        auto size = fs::file_size(at->path(), none);
        if (!none) total += static_cast<double>(size);
    }
    return total;
}

class RemovedFolder {
  public:
    explicit RemovedFolder(fs::path path) : path_(std::move(path)) {}
    ~RemovedFolder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    const fs::path& path() const { return path_; }
    RemovedFolder(const RemovedFolder&) = delete;
    RemovedFolder& operator=(const RemovedFolder&) = delete;

  private:
    fs::path path_;
};

// The files of a component without links: libraries refuse weights that a link leads elsewhere, so files that are links
// get a second name in the cache meanwhile.
class WithoutLinks {
  public:
    WithoutLinks(const EngineDirectory& directory, const std::vector<std::string>& files, const fs::path& cache,
                 const std::string& name)
        : graph_(directory.file(files.front())) {
        auto is_link = [&](const std::string& file) { return fs::is_symlink(directory.file(file)); };
        if (std::none_of(files.begin(), files.end(), is_link)) return;
        folder_.emplace(work_folder(cache, name));
        for (const std::string& file : files) {
            fs::path target = folder_->path() / file, source = fs::canonical(directory.file(file));
            fs::create_directories(target.parent_path());
            std::error_code failure;
            fs::create_hard_link(source, target, failure);
            // Another disk, or a file of another user.
            if (failure) fs::copy_file(source, target);
        }
        graph_ = folder_->path() / files.front();
    }

    const fs::path& graph() const { return graph_; }

  private:
    fs::path graph_;
    std::optional<RemovedFolder> folder_;
};

}  // namespace

fs::path cache_folder() {
    if (const char* chosen = std::getenv("EBCA_CACHE_DIR"); chosen && *chosen) return chosen;
    if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache) return fs::path(cache) / "ebca";
    if (const char* home = std::getenv("HOME"); home && *home) return fs::path(home) / ".cache" / "ebca";
    throw EngineError("there is no folder for prepared engines: HOME is not set", "set EBCA_CACHE_DIR");
}

double cache_limit() {
    const char* chosen = std::getenv("EBCA_CACHE_LIMIT_GB");
    if (!chosen) return kDefaultLimitGb * 1e9;
    char* end = nullptr;
    double value = std::strtod(chosen, &end);
    if (end == chosen || *end || std::isnan(value)) {
        throw ParameterError(text("EBCA_CACHE_LIMIT_GB is '", chosen, "'"), "give a number of gigabytes, e.g. 40");
    }
    return value * 1e9;
}

PreparedEngine::PreparedEngine(const EngineDirectory& directory, std::shared_ptr<const Backend> backend,
                               const fs::path& cache)
    : directory_(directory), backend_(std::move(backend)), root_(cache.empty() ? cache_folder() : cache) {
    Value identity{{"version", kPreparedVersion}, {"backend", backend_->name()}, {"files", Value::object()}};
    for (const auto& [name, value] : backend_->identity()) identity[name] = value;
    for (const auto& [name, record] : directory.manifest.files) identity["files"][name] = record.sha256;
    folder_ = root_ / text(backend_->name(), "-", sha256(dumped(identity)).substr(0, kKeyLength));
    identity["engine"] = directory.path.string();
    marker_ = dumped(identity);
    // Records when it was last used; a folder that does not exist yet has no time to set.
    ::utimes(folder_.c_str(), nullptr);
}

std::vector<std::string> PreparedEngine::sources(const std::string& name) const {
    return directory_.manifest.components.at(name).files(backend_->name());
}

void PreparedEngine::prepare(const std::vector<std::string>& names, const OnPrepare& progress) const {
    try {
        if (all_current(names)) return;
        fs::create_directories(folder_);
        FolderLock held(folder_);
        std::vector<std::string> missing;
        std::copy_if(names.begin(), names.end(), std::back_inserter(missing),
                     [&](const std::string& name) { return !is_current(name); });
        if (missing.empty()) return;
        write_atomically(folder_ / kMarker, marker_);
        if (backend_->prepares()) check_room(missing);
        auto total = static_cast<int64_t>(missing.size());
        for (int64_t done = 0; done < total; ++done) {
            if (progress) progress(done, total, missing[done]);
            make(missing[done]);
        }
        if (progress) progress(total, total, "");
    } catch (const fs::filesystem_error& error) {
        throw EngineError(text("cannot write prepared engines to '", folder_.string(), "': ", error.code().message()),
                          "set EBCA_CACHE_DIR to a folder with room");
    }
}

std::shared_ptr<Runner> PreparedEngine::open(const std::string& name, const Dimensions& dimensions) const {
    prepare({name}, {});
    const Component& component = directory_.manifest.components.at(name);
    fs::path graph = backend_->prepares() ? target(name) : directory_.file(component.graph_for(backend_->name()));
    return backend_->open(graph, component, dimensions);
}

void PreparedEngine::forget(const std::vector<std::string>& names) const {
    std::vector<fs::path> files;
    for (const std::string& name : names) {
        files.push_back(target(name));
        files.push_back(target(name).string() + ".data");
    }
    ebca::forget(files);
}

bool PreparedEngine::all_current(const std::vector<std::string>& names) const {
    return std::all_of(names.begin(), names.end(), [&](const std::string& name) { return is_current(name); });
}

bool PreparedEngine::is_current(const std::string& name) const {
    Value record;
    try {
        record = json::parse(read_file(stamp(name)));
        json::object(json::member(record, "prepared"), "prepared");
        json::object(json::member(record, "sources"), "sources");
    } catch (const EngineError&) {
        return false;
    }
    // Made of other files: the manifest says something else than it did then.
    const std::vector<std::string> files = sources(name);
    auto is_recorded = [&](const std::string& file) { return record["sources"].contains(file); };
    if (record["sources"].size() != files.size() || !std::all_of(files.begin(), files.end(), is_recorded)) return false;
    std::vector<std::string> changed;
    for (const std::string& file : files) {
        if (json::optional_member(record["sources"], file.c_str()) != as_json(stat_of(directory_.file(file)))) {
            changed.push_back(file);
        }
    }
    if (!changed.empty()) {
        directory_.verify(changed);
        Value found = Value::object();
        for (const std::string& file : files) found[file] = as_json(stat_of(directory_.file(file)));
        record["sources"] = found;
        write_atomically(stamp(name), dumped(record));
    }
    for (const auto& [file, made] : record["prepared"].items()) {
        FileStat found = stat_of(folder_ / file);
        if (found.size < 0 || json::optional_member(made, "size") != found.size) return false;
        if (json::optional_member(made, "mtime_ns") != found.mtime_ns &&
            json::optional_member(made, "sha256") != sha256_file(folder_ / file)) {
            return false;
        }
    }
    return !backend_->prepares() || fs::exists(target(name));
}

void PreparedEngine::make(const std::string& name) const {
    directory_.verify(sources(name));
    fs::path work = work_folder(folder_, name);
    RemovedFolder removed(work);
    if (backend_->prepares()) {
        const WithoutLinks files(directory_, sources(name), folder_, name);
        backend_->prepare(files.graph(), work / target(name).filename());
    }
    Value prepared = Value::object(), found = Value::object();
    for (const auto& entry : fs::directory_iterator(work)) {
        fs::path file = folder_ / entry.path().filename();
        fs::rename(entry.path(), file);
        Value record = as_json(stat_of(file));
        record["sha256"] = sha256_file(file);
        prepared[file.filename().string()] = record;
    }
    for (const std::string& file : sources(name)) found[file] = as_json(stat_of(directory_.file(file)));
    write_atomically(stamp(name), dumped({{"prepared", prepared}, {"sources", found}}));
}

void PreparedEngine::check_room(const std::vector<std::string>& names) const {
    double needed = 0;
    for (const std::string& name : names) {
        for (const std::string& file : sources(name))
            needed += static_cast<double>(directory_.manifest.files.at(file).size);
    }
    auto free = static_cast<double>(fs::space(folder_).available);
    // A prepared form may pad weights to the processor's block size.
    double wanted = needed * 1.1 + static_cast<double>(int64_t{64} << 20);
    if (free < wanted) {
        throw EngineError(text("'", folder_.string(), "' has ", std::round(free / 1e8) / 10,
                               " GB free, preparing this engine needs ", std::round(wanted / 1e8) / 10, " GB"),
                          "free some room or set EBCA_CACHE_DIR");
    }
}

void PreparedEngine::evict() const {
    struct Stored {
        fs::path folder;
        double size;
        int64_t used;
    };
    double limit = cache_limit(), total = 0;
    std::vector<Stored> engines;
    std::error_code failure;
    for (const auto& entry : fs::directory_iterator(root_, failure)) {
        // The folder may be shared with others: only folders with the marker of ebca are its own.
        std::error_code gone;
        if (entry.is_symlink(gone) || !fs::is_regular_file(entry.path() / kMarker, gone)) continue;
        Stored engine{entry.path(), 0, stat_of(entry.path()).mtime_ns / 1000000000};
        engine.size = size_of(entry.path());
        total += engine.size;
        engines.push_back(engine);
    }
    std::sort(engines.begin(), engines.end(), [](const Stored& a, const Stored& b) { return a.used < b.used; });
    auto now = std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch());
    for (const Stored& engine : engines) {
        // A minute's grace: another process may be preparing it right now.
        if (total <= limit || engine.folder == folder_ || now.count() - engine.used < kGraceSeconds) continue;
        fs::remove_all(engine.folder, failure);
        total -= engine.size;
    }
}

}  // namespace ebca
