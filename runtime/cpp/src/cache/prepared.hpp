// Prepared forms of components, in the user's cache: rebuildable, verified, bounded. The folder, its key and its stamps
// are those of engines/cache/prepared.py, so that either runtime opens what the other prepared.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "backends/backend.hpp"
#include "cache/temporary.hpp"
#include "contract/directory.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {

// Called with (done, total, component) for the components that have to be made.
using OnPrepare = std::function<void(int64_t, int64_t, const std::string&)>;

// `EBCA_CACHE_DIR`, else the platform's cache folder.
std::filesystem::path cache_folder();

// The prepared components of one engine directory on this machine. Use from one thread at a time. A cache that cannot
// be written is used as far as it goes; what it lacks is prepared in a temporary folder, with one warning.
class PreparedEngine {
  public:
    using Warn = std::function<void(const std::string&)>;

    // Nothing is made yet. cache: empty: `cache_folder()`. warn: called once, if components cannot be kept there.
    PreparedEngine(const EngineDirectory& directory, std::shared_ptr<const Backend> backend,
                   const std::filesystem::path& cache, Warn warn = {});

    // Empty if there is no cache.
    const std::filesystem::path& folder() const { return folder_; }

    // Make what is missing or stale. EngineError: a source file is corrupted, or neither the cache nor a temporary
    // folder can be written.
    void prepare(const std::vector<std::string>& names, const OnPrepare& progress);

    // Open a component, preparing it first if needed. dimensions: as in `Backend::open`.
    std::shared_ptr<Runner> open(const std::string& name, const Dimensions& dimensions);

    // Drop the mapped files of components from memory; they are read again when touched.
    void forget(const std::vector<std::string>& names) const;

    // Delete what was unused in the cache for longest until it is within its bound; never this one, nor its directory.
    void evict() const;

  private:
    std::filesystem::path target(const std::string& name) const { return folder_ / platform::to_path(name + ".onnx"); }
    std::filesystem::path stamp(const std::string& name) const { return folder_ / platform::to_path(name + ".json"); }
    std::vector<std::string> sources(const std::string& name) const;
    bool is_current(const std::string& name) const;
    std::vector<std::string> missing(const std::vector<std::string>& names) const;
    void make_all(const std::vector<std::string>& names, const OnPrepare& progress);
    void prepare_elsewhere(const std::vector<std::string>& names, const OnPrepare& progress, const std::string& reason);
    PreparedEngine& holder(const std::string& name);
    void make(const std::string& name);
    void write_prepared(const std::string& name, const std::filesystem::path& work);
    double room(const std::vector<std::string>& names) const;
    void check_disk(const std::string& name, const std::filesystem::path& work) const;

    const EngineDirectory& directory_;
    std::shared_ptr<const Backend> backend_;
    Warn warn_;
    bool told_ = false;
    std::string no_cache_;  // why there is none
    std::filesystem::path root_;
    std::filesystem::path folder_;
    std::string key_;     // name of the folder
    std::string marker_;  // contents of engine.json
    // Name, size and time of files whose contents were compared: a folder that cannot be written keeps its stamps.
    mutable std::set<std::tuple<std::string, int64_t, int64_t>> verified_files_;
    // What was opened to see whether it opens, for whoever opens it first: a small engine would take a tenth longer to
    // its first image otherwise.
    std::map<std::string, std::shared_ptr<Runner>> opened_;
    std::set<std::string> verified_names_;  // of a backend that prepares nothing, without a cache
    std::unique_ptr<TemporaryFolder> temporary_;
    std::unique_ptr<PreparedEngine> elsewhere_;
};

}  // namespace ebca::internal
