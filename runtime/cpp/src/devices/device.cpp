#include "devices/device.hpp"

#include <cstring>

#include "error.hpp"

namespace ebca::internal {
namespace {

void run_one(Call& call, Cancellation* cancellation) {
    if (!cancellation) return call.run();
    cancellation->check("an evaluation");
    call.run_until(*cancellation);
}

class CallList : public Replay {
  public:
    explicit CallList(std::vector<Call*> calls) : calls_(std::move(calls)) {}

    void run(Cancellation* cancellation) override {
        for (Call* call : calls_) run_one(*call, cancellation);
    }

  private:
    std::vector<Call*> calls_;
};

size_t host_bytes(const Tensor& tensor) {
    return static_cast<size_t>(byte_size(tensor.shape, tensor.dtype));
}

}  // namespace

SharedMemory::SharedMemory(Device& device, const Shape& shape, DType dtype)
    : memory_(device.allocate(byte_size(shape, dtype))), shared_(device.share(memory_.view(0, shape, dtype))) {}

void CpuDevice::read(void*, const void*, int64_t) const {
    throw ParameterError("device 'cpu' cannot read the memory of a GPU",
                         "pass host memory, or open the engine on 'cuda'");
}

void CpuDevice::write(void*, const void*, int64_t) const {
    throw ParameterError("device 'cpu' has no memory of a GPU", "open the engine on 'cuda'");
}

void CpuDevice::run(Call& call, Cancellation* cancellation) {
    run_one(call, cancellation);
}

std::unique_ptr<Replay> CpuDevice::record(std::vector<Call*> calls, std::vector<Shared>, std::vector<Shared>) {
    return std::make_unique<CallList>(std::move(calls));
}

std::pair<std::string, int> parse_device(const std::string& name) {
    if (name == "cpu") return {name, 0};
    // No machine has a hundred GPUs, and longer numbers may overflow.
    bool indexed = name.rfind("cuda:", 0) == 0 && name.size() > 5 && name.size() < 9 &&
                   name.find_first_not_of("0123456789", 5) == name.npos;
    if (name != "cuda" && !indexed) {
        throw ParameterError(text("device '", name, "' is unknown"), "choose one of cpu, cuda, or cuda:1 and so on");
    }
    return {"cuda", indexed ? std::stoi(name.substr(5)) : 0};
}

void run_once(Device& device, const Runner& runner, const Tensors& inputs, const Tensors& outputs,
              Cancellation* cancellation) {
    auto held = device.ready();
    std::vector<SharedMemory> memory;
    auto staged = [&](const Tensors& tensors, std::vector<Shared>& seen) {
        Tensors arrays;
        for (const auto& [name, tensor] : tensors) {
            seen.push_back(memory.emplace_back(device, tensor.shape, tensor.dtype).shared());
            arrays.emplace_back(name, seen.back().array);
        }
        return arrays;
    };
    std::vector<Shared> given, made;
    Tensors read = staged(inputs, given), written = staged(outputs, made);
    for (size_t i = 0; i < given.size(); ++i) {
        std::memcpy(given[i].host.data, inputs[i].second.data, host_bytes(given[i].host));
    }
    device.upload(given);
    std::unique_ptr<Call> call = runner.bind_once(read, written);
    device.run(*call, cancellation);
    device.download(made);
    for (size_t i = 0; i < made.size(); ++i) {
        std::memcpy(outputs[i].second.data, made[i].host.data, host_bytes(made[i].host));
    }
}

}  // namespace ebca::internal
