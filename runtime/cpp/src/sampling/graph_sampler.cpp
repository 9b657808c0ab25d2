#include "sampling/graph_sampler.hpp"

#include <algorithm>
#include <chrono>
#include <tuple>

#include "error.hpp"

namespace ebca::internal {
namespace {

// Capacity grows in these increments, so that most numbers of evaluations need no new recording.
constexpr int64_t kRoom = 64;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point began) {
    return std::chrono::duration<double>(Clock::now() - began).count();
}

double* doubles(const Tensor& tensor) {
    return static_cast<double*>(tensor.data);
}

std::vector<Variant> variants_of(const TableRun& run) {
    std::vector<Variant> out;
    for (const Control& control : run.controls) {
        out.push_back(run.subjects ? guided(control.variant()) : control.variant());
    }
    return out;
}

// Without a step's description, which the device does not find.
NumericalError not_finite(double timestep) {
    return NumericalError(text("the result at timestep ", timestep, " is not finite"),
                          "lower gamma_attn, gamma_norm or guidance_scale, or check the checkpoint");
}

}  // namespace

void GraphSampler::prepare(const TableRun& run) {
    reserve(run.table.evaluations());
    // Whatever is opened later outdates what was recorded before.
    for (Variant variant : variants_of(run)) executor_.calls(variant);
    fill(run);
    if (run.extra_channels) set_extra_channels(executor_, *run.extra_channels);
    executor_.set_control(run.controls.front());
    if (exclusion_) exclusion_->begin(*run.subjects);
    executor_.upload();
    std::vector<Shared> state;
    for (const auto& [name, memory] : state_) state.push_back(memory.shared());
    device_.upload(state);
    draws_ = run.table.stochastic();
    if (draws_) known().begin(run.table, host("start"), run.streams);
    // Not part of any graph, since it runs once.
    if (table_) device_.run(table_->call(), nullptr);
    for (Variant variant : variants_of(run)) recorded(variant);
}

Samples GraphSampler::run(const TableRun& run, const Watch& watch) {
    int64_t total = run.table.evaluations();
    std::vector<Variant> variants = variants_of(run);
    Samples out{Array(run.latents.shape), run.table.timesteps, {}};
    auto report = [&](int64_t index) {
        watch.report({index, total, run.table.timesteps[static_cast<size_t>(index)], out.latents,
                      executor_.contexts_out(), run.table.scale_after(index)});
    };
    if (!watch.on_step) {
        Recording& whole = chained(variants);
        auto began = Clock::now();
        whole.launch();
        wait(run, out.latents);
        out.seconds.assign(static_cast<size_t>(total), seconds_since(began) / static_cast<double>(total));
        report(total - 1);
        return out;
    }
    for (int64_t index = 0; index < total; ++index) {
        auto began = Clock::now();
        recorded(variants[static_cast<size_t>(index)]).launch();
        wait(run, out.latents);
        out.seconds.push_back(seconds_since(began));
        executor_.download();
        report(index);
    }
    return out;
}

// An evaluation, recorded on first use.
Recording& GraphSampler::recorded(Variant variant) {
    std::shared_ptr<Recording>& found = recorded_[{variant, draws_}];
    if (found) return *found;
    std::vector<Call*> unet = executor_.calls(variant, table_ != nullptr), every{kernels_.at("begin").get()};
    if (table_) every.push_back(kernels_.at("embed").get());
    if (draws_) every.push_back(&known().call());
    every.insert(every.end(), unet.begin(), unet.end());
    every.push_back(kernels_.at("end").get());
    if (exclusion_) every.push_back(&exclusion_->call());
    every.push_back(kernels_.at("advance").get());
    // Only the UNet is warmed up: its outputs are overwritten before the sampler reads them.
    found = device_.graphs()->graph(std::move(every), std::move(unet));
    return *found;
}

Recording& GraphSampler::chained(const std::vector<Variant>& variants) {
    if (!chain_.second || chain_.first != std::pair{variants, draws_}) {
        chain_ = {};
        std::vector<std::shared_ptr<Recording>> parts;
        for (Variant variant : variants) {
            recorded(variant);
            parts.push_back(recorded_.at({variant, draws_}));
        }
        chain_ = {{variants, draws_}, device_.graphs()->chain(std::move(parts))};
    }
    return *chain_.second;
}

// Wait for the device, and copy the latents after the last launched evaluation.
void GraphSampler::wait(const TableRun& run, Array& latents) {
    device_.download({state_.at("latents").shared(), state_.at("bad").shared()});
    if (int32_t bad = number("bad")) throw not_finite(run.table.timesteps.at(static_cast<size_t>(bad - 1)));
    std::copy_n(host("latents").floats(), latents.values.size(), latents.values.begin());
}

// Write a run's tables and initial latents into the host's side of the state.
void GraphSampler::fill(const TableRun& run) {
    const SchedulerTable& table = run.table;
    number("step") = number("bad") = 0;
    number("carry") = run.carry_edits;
    *host("guidance_scale").floats() = static_cast<float>(run.guidance_scale.value_or(1.0));
    auto narrow = [](double value) { return static_cast<float>(value); };
    std::transform(table.timesteps.begin(), table.timesteps.end(), host("timesteps").floats(), narrow);
    std::transform(table.input_scale.begin(), table.input_scale.end(), host("input_scale").floats(), narrow);
    for (size_t i = 0; i < table.rows.size(); ++i) {
        double* row = doubles(host("coefficients")) + static_cast<int64_t>(i) * (room_ + 1);
        std::copy(table.rows[i].begin(), table.rows[i].end(), row);
        row[0] = table.first_weight(static_cast<int64_t>(i));
    }
    float* row = host("controls").floats();
    for (const Control& control : run.controls) {
        for (const Array* values : {&control.weights, &control.gamma_attn, &control.gamma_norm}) {
            row = std::copy(values->values.begin(), values->values.end(), row);
        }
    }
    std::transform(run.latents.values.begin(), run.latents.values.end(), host("start").floats(), [&](float value) {
        return static_cast<float>(static_cast<double>(value) * table.init_noise_sigma);
    });
    std::copy_n(host("start").floats(), run.latents.values.size(), host("latents").floats());
}

Tensors GraphSampler::arrays() const {
    Tensors out = executor_.arrays();
    for (const auto& [name, memory] : state_) out.emplace_back(name, memory.shared().array);
    Shape history = host("latents").shape;
    history.insert(history.begin(), room_);
    out.emplace_back("history", history_->view(0, history, DType::float32));
    if (table_) {
        out.emplace_back("embeddings", table_->words());
        out.emplace_back("time_embeddings", executor_.time_embeddings().words());
    }
    return out;
}

// Make room for this many evaluations. New buffers invalidate recordings, which hold addresses.
void GraphSampler::reserve(int64_t evaluations) {
    if (evaluations <= room_) return;
    int64_t room = (evaluations + kRoom - 1) / kRoom * kRoom;
    std::map<std::string, SharedMemory> state = allocate(room);
    std::unique_ptr<TimeTable> table = time_table(state);
    std::unique_ptr<DeviceExclusion> exclusion;
    if (GuidedTensors* guided = executor_.guided()) {
        exclusion = std::make_unique<DeviceExclusion>(*guided, device_, state.at("step").shared().array, room);
    }
    Memory history = device_.allocate(byte_size({room, state.at("latents").shared().array.count()}, DType::float32));
    // Recordings go first: they use the buffers.
    chain_ = {};
    recorded_.clear();
    kernels_.clear();
    known_.reset();
    exclusion_ = std::move(exclusion);
    table_ = std::move(table);
    state_ = std::move(state);
    history_ = std::move(history);
    room_ = room;
    for (const char* name : {"begin", "end", "advance"}) kernels_[name] = device_.graphs()->sampling(name, arrays());
    if (table_) kernels_["embed"] = device_.graphs()->sampling("embed", arrays());
}

// Made by the first run of a stochastic scheduler, since it takes as much memory as the history.
DeviceKnown& GraphSampler::known() {
    if (!known_) {
        known_ = std::make_unique<DeviceKnown>(device_, state_.at("step").shared().array,
                                               state_.at("start").shared().array, room_);
    }
    return *known_;
}

std::map<std::string, SharedMemory> GraphSampler::allocate(int64_t room) {
    const Sizes& sizes = executor_.sizes();
    int64_t control = sizes.at("batch") * sizes.at("contexts") * (sizes.at("tokens") + 2);
    Shape latents = executor_.noise().shape;
    latents[0] = images_;
    const std::tuple<const char*, Shape, DType> tensors[] = {
        {"step", {1}, DType::int32},
        {"bad", {1}, DType::int32},
        {"carry", {1}, DType::int32},
        {"guidance_scale", {1}, DType::float32},
        {"timesteps", {room}, DType::float32},
        {"input_scale", {room}, DType::float32},
        {"coefficients", {room, room + 1}, DType::float64},
        {"controls", {room, control}, DType::float32},
        {"start", latents, DType::float32},
        {"latents", latents, DType::float32},
    };
    std::map<std::string, SharedMemory> state;
    for (const auto& [name, shape, dtype] : tensors) state.emplace(name, SharedMemory(device_, shape, dtype));
    return state;
}

// The table of embeddings, and where evaluations read it as part of the state; null if the UNet embeds them.
std::unique_ptr<TimeTable> GraphSampler::time_table(std::map<std::string, SharedMemory>& state) {
    const Block& target = executor_.time_embeddings();
    if (!executor_.unet().time_step() || !in_words(target)) return nullptr;
    auto table = std::make_unique<TimeTable>(executor_, state.at("timesteps").shared().array);
    const auto [base, stride] = table->gather(target);
    for (const auto& [name, values] : {std::pair{"embedding_base", &base}, std::pair{"embedding_stride", &stride}}) {
        SharedMemory memory(device_, {static_cast<int64_t>(values->size())}, DType::int32);
        std::copy(values->begin(), values->end(), static_cast<int32_t*>(memory.shared().host.data));
        state.emplace(name, std::move(memory));
    }
    return table;
}

}  // namespace ebca::internal
