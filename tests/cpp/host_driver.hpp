// A CUDA driver without a GPU: its device memory is host memory of its own, its stream runs at once, a
// graph is the list of what was enqueued; of the kernels, those between evaluations compute. It counts what is done;
// what runs inside a graph is not counted.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "contract/tensor.hpp"
#include "devices/driver.hpp"
#include "error.hpp"
#include "host_sampling.hpp"

namespace ebca::internal {

class HostGraph : public Graph {
  public:
    std::vector<std::function<void()>> work;
};

class HostDriver : public Driver {
  public:
    explicit HostDriver(Capability capability = {8, 9}) : capability_(capability) {}

    std::map<std::string, int64_t> count;
    bool refuse_capture = false;
    bool refuse_chain = false;
    std::atomic<int64_t> live{0};  // blocks that were not freed
    int64_t kernels = 0;           // launches of the op's kernels that ran, inside graphs or not

    const std::string& name() const override { return name_; }
    int index() const override { return 0; }
    void* stream() const override { return nullptr; }
    Capability capability() const override { return capability_; }
    void enter() override {}

    void* allocate(int64_t bytes) override { return block("allocate", bytes); }
    void free(void* memory) noexcept override { give_back(memory); }
    void* allocate_host(int64_t bytes) override { return block("allocate_host", bytes); }
    void free_host(void* memory) noexcept override { give_back(memory); }

    void copy_in(void* device, const void* host, int64_t bytes) override {
        enqueue("copy_in", [=] { std::memcpy(device, host, static_cast<size_t>(bytes)); });
    }
    void copy_out(void* host, const void* device, int64_t bytes) override {
        enqueue("copy_out", [=] { std::memcpy(host, device, static_cast<size_t>(bytes)); });
    }
    void submit(Call& call) override {
        if (!recording_) {
            ++count["submit"];
            call.run();
            return;
        }
        recording_->work.emplace_back([this, &call] {
            inside_ = true;
            call.run();
            inside_ = false;
        });
    }
    std::unique_ptr<Graph> capture(const std::function<void()>& work) override {
        ++count["capture"];
        forbid("one capture inside another");
        if (refuse_capture) throw BackendError("operation not permitted when stream is capturing");
        auto graph = std::make_unique<HostGraph>();
        recording_ = graph.get();
        try {
            work();
        } catch (...) {
            recording_ = nullptr;
            throw;
        }
        recording_ = nullptr;
        return graph;
    }
    std::unique_ptr<Graph> chain(const std::vector<const Graph*>& graphs) override {
        ++count["chain"];
        if (refuse_chain) throw BackendError("child graphs are not supported");
        auto made = std::make_unique<HostGraph>();
        for (const Graph* graph : graphs) {
            const auto& work = static_cast<const HostGraph&>(*graph).work;
            made->work.insert(made->work.end(), work.begin(), work.end());
        }
        return made;
    }
    void launch(Graph& graph) override {
        forbid("a graph launched inside a capture");
        ++count["launch"];
        for (const auto& work : static_cast<HostGraph&>(graph).work) work();
    }
    void synchronize() override {
        forbid("the host waits inside a capture");
        ++count["synchronize"];
    }
    void* load(const std::string& image, const std::string& kernel) override {
        forbid("a kernel loaded inside a capture");
        ++count["load"];
        if (image.empty()) throw BackendError("the image is empty");
        loaded_.push_back(kernel);
        return &loaded_.back();
    }
    void launch_kernel(void* kernel, const std::array<uint32_t, 3>& grid, uint32_t, uint32_t,
                       void** parameters) override {
        if (!run_sampling(*static_cast<const std::string*>(kernel), grid[0], parameters)) ++kernels;
    }

  private:
    void* block(const char* name, int64_t bytes) {
        forbid("memory allocated inside a capture");
        ++count[name];
        ++live;
        auto size = static_cast<size_t>((bytes + kAlignment) / kAlignment * kAlignment);
        void* made = std::aligned_alloc(kAlignment, size);
        if (!made) throw std::bad_alloc();
        return std::memset(made, 0, size);
    }
    void give_back(void* memory) noexcept {
        --live;
        std::free(memory);
    }
    void enqueue(const char* name, std::function<void()> work) {
        if (recording_) {
            recording_->work.push_back(std::move(work));
        } else {
            ++count[name];
            work();
        }
    }
    void forbid(const char* what) const {
        if (recording_ || inside_) throw std::logic_error(what);
    }

    std::string name_ = "cuda:0";
    Capability capability_;
    HostGraph* recording_ = nullptr;
    bool inside_ = false;
    std::deque<std::string> loaded_;  // names of kernels
};

}  // namespace ebca::internal
