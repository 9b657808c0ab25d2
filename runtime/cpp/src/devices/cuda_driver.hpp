// The CUDA driver, libcuda.so.1, loaded at run time: nothing of CUDA is needed to build. Not run on a GPU yet.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "devices/driver.hpp"

namespace ebca::internal {

struct CudaFunctions;

struct GpuInfo {
    std::string name;
    int64_t bytes;
    Capability capability;
};

// The GPUs of this machine, in CUDA's order; none without a driver. BackendError for a driver that does not work.
std::vector<GpuInfo> list_gpus();

// Works in the primary context of one GPU, the one that the CUDA runtime and ONNX Runtime use too.
class CudaDriver : public Driver {
  public:
    // index: of the GPU. stream: the caller's cudaStream_t in that GPU's primary context, which must outlive the
    // driver; null: one of its own that waits for no other. BackendError: no driver, or no GPU of that index.
    CudaDriver(int index, void* stream);
    ~CudaDriver() override;
    CudaDriver(const CudaDriver&) = delete;
    CudaDriver& operator=(const CudaDriver&) = delete;

    const std::string& name() const override { return name_; }
    int index() const override { return index_; }
    void* stream() const override { return stream_; }
    Capability capability() const override { return capability_; }
    void enter() override;
    void* allocate(int64_t bytes) override;
    void free(void* memory) noexcept override;
    void* allocate_host(int64_t bytes) override;
    void free_host(void* memory) noexcept override;
    void copy_in(void* device, const void* host, int64_t bytes) override;
    void copy_out(void* host, const void* device, int64_t bytes) override;
    void submit(Call& call) override;
    std::unique_ptr<Graph> capture(const std::function<void()>& enqueue) override;
    std::unique_ptr<Graph> chain(const std::vector<const Graph*>& graphs) override;
    void launch(Graph& graph) override;
    void synchronize() override;
    void* load(const std::string& image, const std::string& kernel) override;
    void launch_kernel(void* kernel, const std::array<uint32_t, 3>& grid, uint32_t threads, uint32_t shared_bytes,
                       void** parameters) override;

  private:
    void check(int status, const char* call) const;
    std::unique_ptr<Graph> instantiated(void* definition);

    std::shared_ptr<const CudaFunctions> api_;
    std::string name_;
    int index_;
    int device_ = 0;
    Capability capability_;
    void* context_ = nullptr;
    void* stream_ = nullptr;
    bool own_stream_ = false;
    std::vector<void*> modules_;
};

}  // namespace ebca::internal
