// A single evaluation of the UNet, as runtime/denoiser.py makes it.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "memory.hpp"
#include "parameters.hpp"
#include "session.hpp"

namespace ebca::internal {
namespace {

Array copied(const Tensor& tensor) {
    Array out(tensor.shape);
    std::copy_n(tensor.floats(), out.values.size(), out.values.begin());
    return out;
}

// What only some UNets take, [rows,width]; empty: not given.
void check_added(const std::string& name, const Shape& given, int64_t rows, int64_t width, bool taken) {
    if (!taken) {
        if (!given.empty()) throw rules::added_engine(name);
        return;
    }
    if (given.empty()) throw rules::is_null(name + ".data");
    if (given != Shape{rows, width}) throw rules::pooled_shape(name, to_string(given), rows, width);
}

}  // namespace

void check_denoise(const DenoiseShapes& shapes, const std::vector<double>& timesteps, const UNetSpec& unet,
                   const Shape& latents) {
    const Shape &sample = shapes.sample, &contexts = shapes.contexts;
    int64_t rows = sample[0];
    if (sample != Shape{rows, unet.in_channels, latents[2], latents[3]}) {
        throw rules::sample_shape(to_string(sample), unet.in_channels, latents[2], latents[3]);
    }
    if (contexts.size() != 4 || contexts[0] != rows || contexts[3] != unet.context_dim) {
        throw rules::contexts_shape(to_string(contexts), rows, unet.context_dim);
    }
    if (unet.max_contexts && contexts[1] > *unet.max_contexts) {
        throw rules::edits_too_many(contexts[1] - 1, *unet.max_contexts - 1);
    }
    bool taken = unet.pooled_size() > 0;
    check_added(kTextEmbeds, shapes.text_embeds, rows, unet.pooled_size(), taken);
    check_added(kTimeIds, shapes.time_ids, rows, kTimeIdCount, taken);
    size_t count = timesteps.size();
    if (count != 1 && static_cast<int64_t>(count) != rows) throw rules::timestep_count(count, rows);
    for (size_t i = 0; i < count; ++i) {
        if (std::isfinite(static_cast<float>(timesteps[i]))) continue;
        throw rules::finite_number(text("timesteps[", i, "]"), timesteps[i]);
    }
}

Result Session::denoise(const DenoiseRequest& request) {
    const UNetSpec& unet = engine_->manifest().unet;
    const Shape latents = latent_shape(), &contexts = request.conditions.contexts.shape;
    const Sizes sizes{{"batch", contexts[0]},
                      {"contexts", contexts[1]},
                      {"tokens", contexts[2]},
                      {"height", latents[2]},
                      {"width", latents[3]}};
    bool on_cpu = engine_->device().name() == "cpu";
    if (request.record_energies) check_records(engine_->device());
    int64_t rows = sizes.at("batch");
    const std::string what = text(rows, " rows of ", sizes.at("height"), " x ", sizes.at("width"), " latents");
    if (on_cpu) check_host_memory(engine_->manifest(), engine_->backend().name() == "openvino", {sizes}, what);
    const Control control = resolve(request.control, unet.layers, sizes);
    Variant variant = request.record_energies ? Variant::energies : control.variant();
    auto began = std::chrono::steady_clock::now();
    Executor& executor = this->executor(request.conditions);
    std::copy(request.sample.values.begin(), request.sample.values.end(), executor.sample().floats());
    for (int64_t row = 0; row < rows; ++row) {
        double timestep = request.timesteps[request.timesteps.size() == 1 ? 0 : static_cast<size_t>(row)];
        executor.timestep().floats()[row] = static_cast<float>(timestep);
    }
    executor.set_control(control);
    engine_->with_room([&] { executor.bind(variant); });
    auto opened = std::chrono::steady_clock::now();
    executor.run(variant, &cancellation_);
    Result result;
    result.timings.unet_steps = {std::chrono::duration<double>(std::chrono::steady_clock::now() - opened).count()};
    result.timings.open = std::chrono::duration<double>(opened - began).count();
    check_finite(executor, variant, request.timesteps[0]);
    result.timesteps = {request.timesteps[0]};
    result.noise = copied(executor.noise());
    result.contexts = copied(executor.contexts_out());
    if (request.record_energies) {
        Telemetry telemetry(executor, 0, true, false);
        telemetry.record(executor);
        result.take(telemetry);
    }
    return result;
}

}  // namespace ebca::internal
