#include "execution/time_table.hpp"

#include <algorithm>
#include <cstring>

#include "error.hpp"

namespace ebca::internal {
namespace {

constexpr int64_t kWordBytes = 4;

int64_t row_bytes(const Tensor& tensor) {
    return byte_size(tensor.shape, tensor.dtype) / tensor.shape.at(0);
}

std::vector<Block::Spec> specs_of(const UNetSpec& unet, const Sizes& sizes) {
    std::vector<Block::Spec> out;
    for (const std::string& name : unet.time_step()->outputs) {
        const TensorSpec& tensor = unet.tensors.at(name);
        out.push_back({name, evaluate(tensor.shape, sizes), tensor.dtype});
    }
    return out;
}

Sizes with_batch(Sizes sizes, int64_t batch) {
    sizes["batch"] = batch;
    return sizes;
}

}  // namespace

TimeTable::TimeTable(const Executor& executor, const Tensor& timesteps)
    : block_(executor.device(), specs_of(executor.unet(), with_batch(executor.sizes(), timesteps.shape.at(0)))) {
    auto held = executor.device().ready();
    const Step& step = *executor.unet().time_step();
    std::shared_ptr<Runner> runner = executor.open(step.segment, with_batch(executor.sizes(), timesteps.shape.at(0)));
    Tensors outputs;
    for (const std::string& name : step.outputs) outputs.emplace_back(name, rows().at(name));
    call_ = runner->bind({{"timestep", timesteps}}, outputs);
}

std::pair<std::vector<int32_t>, std::vector<int32_t>> TimeTable::gather(const Block& target) const {
    auto size = static_cast<size_t>(target.words().count());
    std::vector<int32_t> base(size), stride(size);
    for (const auto& [name, tensor] : target.tensors()) {
        int64_t batch = tensor.shape.at(0), words = row_bytes(tensor) / kWordBytes;
        int64_t to = target.offset(name) / kWordBytes, from = block_.offset(name) / kWordBytes;
        for (int64_t i = 0; i < batch * words; ++i) {
            base[static_cast<size_t>(to + i)] = static_cast<int32_t>(from + i % words);
            stride[static_cast<size_t>(to + i)] = static_cast<int32_t>(words);
        }
    }
    return {std::move(base), std::move(stride)};
}

bool in_words(const Block& embeddings) {
    return std::all_of(embeddings.tensors().begin(), embeddings.tensors().end(),
                       [](const auto& one) { return row_bytes(one.second) % kWordBytes == 0; });
}

HostEmbeddings::HostEmbeddings(Executor& executor, std::vector<double> timesteps)
    : target_(executor.time_embeddings()), timesteps_(std::move(timesteps)) {
    std::sort(timesteps_.begin(), timesteps_.end());
    timesteps_.erase(std::unique(timesteps_.begin(), timesteps_.end()), timesteps_.end());
    Shape shape{static_cast<int64_t>(timesteps_.size())};
    times_ = std::make_unique<Memory>(executor.device().allocate(byte_size(shape, DType::float32)));
    Tensor times = times_->view(0, shape, DType::float32);
    std::transform(timesteps_.begin(), timesteps_.end(), times.floats(),
                   [](double timestep) { return static_cast<float>(timestep); });
    table_ = std::make_unique<TimeTable>(executor, times);
    executor.device().run(table_->call(), nullptr);
}

void HostEmbeddings::write(double timestep) const {
    auto found = std::lower_bound(timesteps_.begin(), timesteps_.end(), timestep);
    if (found == timesteps_.end() || *found != timestep) {
        throw ParameterError(text("there is no time embedding of timestep ", timestep));
    }
    for (const auto& [name, tensor] : target_.tensors()) {
        auto bytes = static_cast<size_t>(row_bytes(tensor));
        const auto* from = static_cast<const std::byte*>(table_->rows().at(name).data);
        auto* to = static_cast<std::byte*>(tensor.data);
        from += static_cast<size_t>(found - timesteps_.begin()) * bytes;
        for (int64_t row = 0; row < tensor.shape[0]; ++row)
            std::memcpy(to + static_cast<size_t>(row) * bytes, from, bytes);
    }
}

}  // namespace ebca::internal
