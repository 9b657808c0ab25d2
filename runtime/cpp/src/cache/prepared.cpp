#include "cache/prepared.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <optional>
#include <system_error>

#include "cache/eviction.hpp"
#include "cache/files.hpp"
#include "cache/locks.hpp"
#include "contract/json.hpp"
#include "contract/sha256.hpp"
#include "error.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace fs = std::filesystem;
namespace {

using json::Value;

// Keep equal to engines/cache/prepared.py.
constexpr int kPreparedVersion = 1;
constexpr int64_t kAbandonedSeconds = 3600;
constexpr size_t kProbeBytes = size_t{64} << 10;
constexpr size_t kKeyLength = 24;
// Of what a backend writes at least: it may store weights twice.
constexpr double kMostGrowth = 2;

using platform::FileFacts;

// Size -1: there is no such file, or what is there is none.
FileFacts facts_of(const fs::path& path) {
    FileFacts found = platform::facts_of(path);
    return found.kind == platform::FileKind::regular ? found : FileFacts();
}

Value as_json(const FileFacts& found) {
    return json::made([&](Value& out) {
        out["size"] = found.size;
        out["mtime_ns"] = found.mtime_ns;
    });
}

// Whether a record is of a file that is as it was then.
bool is_of(const Value& record, const FileFacts& found) {
    return json::optional_member(record, "size") == found.size &&
           json::optional_member(record, "mtime_ns") == found.mtime_ns;
}

// filesystem_error if nothing can be written to a folder.
void check_writable(const fs::path& folder) {
    fs::path probe = folder / ".probe";
    std::error_code failure = platform::write_through(probe, std::string(kProbeBytes, '\0')), ignored;
    fs::remove(probe, ignored);
    if (failure) throw fs::filesystem_error("cannot write", folder, failure);
}

// Whoever prepares holds the lock, so that no folder is in use. Stamps are rewritten without it, within milliseconds.
void remove_abandoned(const fs::path& folder) {
    std::error_code failure;
    std::vector<fs::path> found;
    const int64_t now = seconds_now();
    for (const fs::path& path : platform::entries_of(folder)) {
        std::string name = platform::to_utf8(path.filename());
        bool work = name[0] == '.' && name.find('.', 1) != std::string::npos;
        if (work && fs::is_directory(fs::symlink_status(path))) found.push_back(path);
        int64_t age = now - facts_of(path).mtime_ns / 1000000000;
        if (path.extension() == ".tmp" && age > kAbandonedSeconds) found.push_back(path);
    }
    for (const fs::path& path : found) fs::remove_all(path, failure);
}

// A cache that cannot be used, for a reason that is no error of the file system.
struct CacheError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// CacheError if the disk of a folder has no room for some bytes, and some more.
void check_room(const fs::path& folder, double needed) {
    auto free = static_cast<double>(fs::space(folder).available);
    double wanted = needed + static_cast<double>(int64_t{64} << 20);
    if (free < wanted) {
        throw CacheError(text("the disk has ", std::round(free / 1e7) / 100, " GB free, and ",
                              std::round(wanted / 1e7) / 100, " GB are needed"));
    }
}

bool has_digest(const fs::path& file, const Value& record) {
    try {
        return json::is(json::optional_member(record, "sha256"), sha256_file(file));
    } catch (const EngineError&) {
        return false;
    }
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
        folder_.emplace(platform::make_folder(cache / ("." + name + ".")));
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
    if (std::string chosen = platform::variable("EBCA_CACHE_DIR"); !chosen.empty()) return platform::to_path(chosen);
    if (fs::path folder = platform::user_cache(); !folder.empty()) return folder;
    throw EngineError("there is no folder for prepared engines: HOME is not set", "set EBCA_CACHE_DIR");
}

PreparedEngine::PreparedEngine(const EngineDirectory& directory, std::shared_ptr<const Backend> backend,
                               const fs::path& cache, Warn warn)
    : directory_(directory), backend_(std::move(backend)), warn_(std::move(warn)) {
    Value identity;
    const json::TakenApart without_memory(identity);
    identity["version"] = kPreparedVersion;
    identity["backend"] = backend_->name();
    identity["files"] = Value::object();
    for (const auto& [name, value] : backend_->identity()) identity[name] = value;
    for (const auto& [name, record] : directory.manifest.files) identity["files"][name] = record.sha256;
    key_ = text(backend_->name(), "-", sha256(json::dumped(identity)).substr(0, kKeyLength));
    identity["engine"] = platform::to_utf8(directory.path);
    marker_ = json::dumped(identity);
    try {
        root_ = fs::absolute(cache.empty() ? cache_folder() : cache);
        folder_ = root_ / key_;
    } catch (const EngineError& error) {
        no_cache_ = error.problem();
    }
    // Records when it was last used; a folder that does not exist yet has no time to set.
    std::error_code ignored;
    fs::last_write_time(folder_, fs::file_time_type::clock::now(), ignored);
}

std::vector<std::string> PreparedEngine::sources(const std::string& name) const {
    return directory_.manifest.components.at(name).files(backend_->name());
}

void PreparedEngine::prepare(const std::vector<std::string>& names, const OnPrepare& progress) {
    std::vector<std::string> missing = this->missing(names);
    if (missing.empty()) return;
    try {
        if (folder_.empty()) throw CacheError(no_cache_);
        try {
            make_all(missing, progress);
        } catch (const fs::filesystem_error& error) {
            if (error.code() != std::errc::no_such_file_or_directory) throw;
            // Somebody deleted the folder meanwhile.
            make_all(missing, progress);
        }
    } catch (const CacheError& error) {
        prepare_elsewhere(this->missing(names), progress, error.what());
    } catch (const fs::filesystem_error& error) {
        prepare_elsewhere(this->missing(names), progress, error.code().message());
    }
}

std::vector<std::string> PreparedEngine::missing(const std::vector<std::string>& names) const {
    std::vector<std::string> out;
    std::copy_if(names.begin(), names.end(), std::back_inserter(out), [&](const std::string& name) {
        return !verified_names_.count(name) && !(elsewhere_ && elsewhere_->is_current(name)) && !is_current(name);
    });
    return out;
}

// One thread or process at a time prepares in a folder; the others wait and then find it prepared.
void PreparedEngine::make_all(const std::vector<std::string>& names, const OnPrepare& progress) {
    fs::create_directories(folder_);
    make_way(folder_ / kLock);
    FileLock held = FileLock::wait(folder_ / kLock);
    std::vector<std::string> missing;
    std::copy_if(names.begin(), names.end(), std::back_inserter(missing),
                 [&](const std::string& name) { return !is_current(name); });
    if (missing.empty()) return;
    remove_abandoned(folder_);
    write_atomically(folder_ / kMarker, marker_);
    if (backend_->prepares()) check_room(folder_, room(missing));
    auto total = static_cast<int64_t>(missing.size());
    for (int64_t done = 0; done < total; ++done) {
        if (progress) progress(done, total, missing[done]);
        make(missing[done]);
    }
    if (progress) progress(total, total, "");
}

void PreparedEngine::prepare_elsewhere(const std::vector<std::string>& names, const OnPrepare& progress,
                                       const std::string& reason) {
    std::string where = folder_.empty() ? "the user's cache" : text("'", platform::to_utf8(folder_), "'");
    std::string problem = text("prepared components cannot be kept in ", where, " (", reason, ")");
    const char* instead = "every process verifies the engine directory again";
    if (backend_->prepares()) {
        std::string failure;
        try {
            if (!elsewhere_) {
                temporary_ = std::make_unique<TemporaryFolder>();
                elsewhere_ = std::make_unique<PreparedEngine>(directory_, backend_, temporary_->path(), Warn{});
            }
            elsewhere_->make_all(names, progress);
        } catch (const CacheError& error) {
            failure = error.what();
        } catch (const fs::filesystem_error& error) {
            failure = error.code().message();
        }
        if (!failure.empty())
            throw EngineError(text(problem, ", nor in a temporary folder (", failure, ")"), kCacheRemedy);
        instead = "this engine uses a temporary folder, and the next one prepares again";
    } else {
        for (const std::string& name : names) directory_.verify(sources(name));
        verified_names_.insert(names.begin(), names.end());
    }
    if (!std::exchange(told_, true) && warn_) warn_(text(problem, ": ", instead, "; ", kCacheRemedy));
}

PreparedEngine& PreparedEngine::holder(const std::string& name) {
    return elsewhere_ && elsewhere_->is_current(name) ? *elsewhere_ : *this;
}

std::shared_ptr<Runner> PreparedEngine::open(const std::string& name, const Dimensions& dimensions) {
    prepare({name}, {});
    const Component& component = directory_.manifest.components.at(name);
    if (!backend_->prepares()) {
        return backend_->open(directory_.file(component.graph_for(backend_->name())), component, dimensions);
    }
    if (auto opened = holder(name).opened_.extract(name)) return std::move(opened.mapped());
    try {
        return backend_->open(holder(name).target(name), component, dimensions);
    } catch (const BackendError&) {
        // It opened when it was prepared: it is damaged, for example by a power failure, or whoever prepared it did not
        // try. It is prepared once more.
    }
    std::error_code failure;
    fs::remove_all(holder(name).stamp(name), failure);
    if (failure) {
        prepare_elsewhere({name}, {}, failure.message());
    } else {
        prepare({name}, {});
    }
    return backend_->open(holder(name).target(name), component, dimensions);
}

void PreparedEngine::forget(const std::vector<std::string>& names) const {
    std::vector<fs::path> files;
    for (const std::string& name : names) {
        files.push_back(target(name));
        files.push_back(platform::to_path(platform::to_utf8(target(name)) + ".data"));
    }
    platform::forget(files);
    if (elsewhere_) elsewhere_->forget(names);
}

bool PreparedEngine::is_current(const std::string& name) const {
    Value record;
    const json::TakenApart without_memory(record);
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
        FileFacts now = facts_of(directory_.file(file));
        bool known = verified_files_.count({file, now.size, now.mtime_ns});
        if (!known && !is_of(json::optional_member(record["sources"], file.c_str()), now)) {
            changed.push_back(file);
        }
    }
    if (!changed.empty()) {
        directory_.verify(changed);
        Value found = Value::object();
        const json::TakenApart without_memory_too(found);
        for (const std::string& file : files) {
            FileFacts now = facts_of(directory_.file(file));
            found[file] = as_json(now);
            verified_files_.insert({file, now.size, now.mtime_ns});
        }
        record["sources"].swap(found);
        try {
            write_atomically(stamp(name), json::dumped(record));
        } catch (const fs::filesystem_error&) {
            // The next process verifies again.
        }
    }
    for (const auto& [file, made] : record["prepared"].items()) {
        FileFacts found = facts_of(folder_ / file);
        if (found.size < 0 || json::optional_member(made, "size") != found.size) return false;
        bool untouched = json::optional_member(made, "mtime_ns") == found.mtime_ns;
        if (!untouched && !has_digest(folder_ / file, made)) return false;
    }
    return !backend_->prepares() || fs::exists(target(name));
}

void PreparedEngine::make(const std::string& name) {
    directory_.verify(sources(name));
    fs::path work = platform::make_folder(folder_ / ("." + name + "."));
    RemovedFolder removed(work);
    if (backend_->prepares()) {
        write_prepared(name, work);
    }
    Value stamped;
    const json::TakenApart without_memory(stamped);
    Value &prepared = stamped["prepared"] = Value::object(), &found = stamped["sources"] = Value::object();
    // An old stamp must not meet new files.
    fs::remove_all(stamp(name));
    for (const fs::path& made : platform::entries_of(work)) {
        fs::path file = folder_ / made.filename();
        make_way(file);
        fs::rename(made, file);
        Value& record = prepared[platform::to_utf8(file.filename())];
        record = as_json(facts_of(file));
        record["sha256"] = sha256_file(file);
    }
    for (const std::string& file : sources(name)) found[file] = as_json(facts_of(directory_.file(file)));
    write_atomically(stamp(name), json::dumped(stamped));
}

// The prepared form of a component, which opens: a stamp promises that to every later process.
void PreparedEngine::write_prepared(const std::string& name, const fs::path& work) {
    const WithoutLinks files(directory_, sources(name), folder_, name);
    const fs::path made = work / target(name).filename();
    for (bool again : {false, true}) {
        try {
            backend_->prepare(files.graph(), made);
        } catch (const BackendError&) {
            check_disk(name, work);
            throw;
        }
        try {
            auto runner = backend_->open(made, directory_.manifest.components.at(name), {});
            // Else it is opened for sizes, which are not known here.
            if (!backend_->fixes_shapes()) opened_[name] = std::move(runner);
            return;
        } catch (const BackendError& error) {
            check_disk(name, work);
            if (again) {
                throw BackendError(text("what was prepared of component '", name, "' does not open: ", error.problem()),
                                   "try another release of the library, and report it");
            }
        }
    }
}

// Bytes that prepared forms of components take at least.
double PreparedEngine::room(const std::vector<std::string>& names) const {
    double stored = 0;
    for (const std::string& name : names) {
        for (const std::string& file : sources(name))
            stored += static_cast<double>(directory_.manifest.files.at(file).size);
    }
    return stored * backend_->growth(directory_.manifest.precision);
}

// An error of the cache if a library failed because the disk is full: it does not say so, and what it wrote is still
// there.
void PreparedEngine::check_disk(const std::string& name, const fs::path& work) const {
    check_writable(work);
    double written = 0;
    for (const fs::path& file : platform::entries_of(work)) written += static_cast<double>(facts_of(file).size);
    check_room(work, kMostGrowth * room({name}) - written);
}

void PreparedEngine::evict() const {
    if (!root_.empty()) internal::evict(root_, {folder_, directory_.path});
}

}  // namespace ebca::internal
