// An opened engine directory, shared by sessions and threads.
#pragma once

#include <filesystem>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.hpp"
#include "backends/cpu_backends.hpp"
#include "cache/prepared.hpp"
#include "cache/unpacked.hpp"
#include "contract/directory.hpp"
#include "contract/tensor.hpp"
#include "devices/device.hpp"
#include "devices/gpu_device.hpp"
#include "error.hpp"
#include "execution/executor.hpp"
#include "images/preview.hpp"
#include "log.hpp"
#include "tokenizer/prompt_tokenizer.hpp"

namespace ebca::internal {

struct EngineOptions {
    std::filesystem::path path;
    ReadFile read;  // gives the files instead; called only while the engine is opened
    std::string device = "cpu";
    CpuBackendOptions cpu;        // for device "cpu"; "cuda" uses only ort_library
    GpuOptions gpu;               // for device "cuda"
    std::filesystem::path cache;  // of prepared engines; empty: EBCA_CACHE_DIR, else the platform's
    OnPrepare on_prepare;
    Log log;
};

// Of n rows [n,T], as a text encoder takes them.
struct TokenIds {
    int64_t rows = 0;
    std::vector<int64_t> ids;
    std::vector<int64_t> second;  // for the second text encoder; empty without one
};

// What a text encoder makes of them.
struct Embeddings {
    Array states;  // [n,T,D]
    Array pooled;  // [n,P]; empty with one text encoder
};

// Thread-safe. Sessions own their buffers; the engine owns the opened graphs.
class Engine {
  public:
    // Prepares every component on the first call on a machine, which takes up to a minute at SD 1.5 size.
    // EngineError, BackendError, ParameterError, UnsupportedError.
    explicit Engine(const EngineOptions& options);

    // The same on a given device and backend; the backend computes in the device's memory.
    Engine(const EngineOptions& options, std::shared_ptr<Device> device, std::shared_ptr<const Backend> backend);

    const EngineDirectory& directory() const { return directory_; }
    const Manifest& manifest() const { return directory_.manifest; }
    const Backend& backend() const { return *backend_; }
    Device& device() const { return *device_; }
    void log(LogLevel level, const std::string& message) const;

    // An opened component; opened on first use and shared. sizes: batch, contexts, tokens, height, width, as far as its
    // shapes use them. A component that is opened per size stays open for the sizes used last. DeviceMemoryError.
    std::shared_ptr<Runner> runner(const std::string& component, const Sizes& sizes);

    // Close a component that sampling does not need, unless the backend keeps components open; bindings that exist keep
    // it open.
    void release(const std::string& component);

    // What `work` returns. If the device has too little memory for it, it is tried again after closing what sampling
    // does not need.
    template <typename Work>
    auto with_room(Work&& work) -> decltype(work()) {
        try {
            return work();
        } catch (const DeviceMemoryError&) {
            close_idle();
        }
        return work();
    }

    // Drop the UNet's mapped weights from memory. They return from the page cache when used.
    void forget_weights();

    // A new executor with its own buffers, for so many groups of tokens. OutOfMemoryError if there is not enough memory
    // for these sizes.
    std::unique_ptr<Executor> executor(const Sizes& sizes, int64_t groups = 0);

    // EngineError for a UNet-only directory.
    const PromptTokenizer& tokenizer();

    // Compare the scheduler tables with the manifest, once. EngineError if they differ.
    void verify_tables();

    // Open the VAE's decoder for latents [n,C,h,w] and run it once, if that would later outdate recorded work. In
    // tiles, this is so for the first one, which needs the most memory.
    void warm_up_decoder(const Shape& latents, bool tiled);

    // The next three throw CancelledError as soon as that is requested, in a graph or between two; null: never.

    // Token ids of n rows to embeddings.
    Embeddings encode(const TokenIds& ids, int64_t clip_skip, Cancellation* cancellation);

    // Scaled latents [n,C,h,w] to images [n,3,8h,8w] in [-1, 1]; one image at a time to bound memory. tiled: in tiles
    // of the size that the model was trained at (images/tiling.hpp).
    Array decode(const Array& latents, bool tiled, Cancellation* cancellation);

    // Shows latents without the decoder; the first call runs it on a few small images.
    std::shared_ptr<const Preview> preview();

    // Images [n,H,W,3] in [0, 1] to mean and standard deviation of their scaled latents, [n,C,h,w] each. tiled: as of
    // `decode`; standard deviations are blended like means.
    std::pair<Array, Array> encode_image(const Array& pixels, bool tiled, Cancellation* cancellation);

  private:
    void open_device(const EngineOptions& options);
    void start(const EngineOptions& options);
    void prepare(const OnPrepare& on_prepare);
    std::shared_ptr<Runner> open(const std::string& component, const Dimensions& dimensions);
    void close_idle();
    const std::string& layers_component() const;
    std::vector<std::string> text_encoders() const;
    Array decode_tile(Array& latents, Cancellation* cancellation);
    Array encode_tile(Array& image, Cancellation* cancellation);
    void evaluate(const std::string& component, const Sizes& sizes, const Tensors& inputs, const Tensors& outputs,
                  Cancellation* cancellation);

    std::unique_ptr<UnpackedDirectory> unpacked_;  // null: the directory is a folder of the host's
    EngineDirectory directory_;
    std::shared_ptr<Device> device_;
    std::shared_ptr<const Backend> backend_;
    Log log_;
    std::optional<PreparedEngine> prepared_;
    std::recursive_mutex lock_;
    // By component, for each set of dimensions; those used last come first.
    std::map<std::string, std::list<std::pair<Dimensions, std::shared_ptr<Runner>>>> runners_;
    // Runners that have run outside of recorded work.
    std::set<std::weak_ptr<Runner>, std::owner_less<std::weak_ptr<Runner>>> settled_;
    std::optional<PromptTokenizer> tokenizer_;
    bool tables_verified_ = false;
    std::shared_ptr<const Preview> preview_;
};

}  // namespace ebca::internal
