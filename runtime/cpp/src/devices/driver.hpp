// What a CUDA device needs of the driver. Everything that takes time is enqueued on one stream. `CudaDriver` is the
// real one; tests have one over host memory.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.hpp"

namespace ebca::internal {

// Compute capability, (8, 9) for 8.9.
using Capability = std::pair<int, int>;

// Captured work; given back with the object, before its driver.
class Graph {
  public:
    virtual ~Graph() = default;
};

// Calls come from one thread at a time, after `enter` in that thread; `free` and `free_host` from any.
class Driver {
  public:
    virtual ~Driver() = default;
    virtual const std::string& name() const = 0;  // "cuda:0"
    virtual int index() const = 0;                // of the GPU
    virtual void* stream() const = 0;             // cudaStream_t that everything is enqueued on
    virtual Capability capability() const = 0;

    // Make the device's context the one of the calling thread.
    virtual void enter() = 0;

    // Zeroed device memory, aligned to kAlignment. std::bad_alloc without memory.
    virtual void* allocate(int64_t bytes) = 0;
    virtual void free(void* memory) noexcept = 0;

    // Zeroed pinned host memory.
    virtual void* allocate_host(int64_t bytes) = 0;
    virtual void free_host(void* memory) noexcept = 0;

    // Enqueue a copy between pinned memory and the device.
    virtual void copy_in(void* device, const void* host, int64_t bytes) = 0;
    virtual void copy_out(void* host, const void* device, int64_t bytes) = 0;

    // Let a call enqueue its work.
    virtual void submit(Call& call) = 0;

    // A graph of what `enqueue` enqueues, which does not run now. BackendError where that cannot be.
    virtual std::unique_ptr<Graph> capture(const std::function<void()>& enqueue) = 0;

    // One graph that runs several graphs in order; they may go before it does. BackendError where that cannot be.
    virtual std::unique_ptr<Graph> chain(const std::vector<const Graph*>& graphs) = 0;

    // Enqueue a graph.
    virtual void launch(Graph& graph) = 0;

    // Wait for all that was enqueued. BackendError for an error on the device.
    virtual void synchronize() = 0;

    // A kernel of a cubin, or of PTX text. Lives as long as the driver.
    virtual void* load(const std::string& image, const std::string& kernel) = 0;

    // Enqueue a kernel. parameters: an array of addresses, one per argument, read before this returns.
    virtual void launch_kernel(void* kernel, const std::array<uint32_t, 3>& grid, uint32_t threads,
                               uint32_t shared_bytes, void** parameters) = 0;
};

}  // namespace ebca::internal
