// Runs the steps of a split UNet on a device: one arena, everything bound once, each evaluation a replay.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.hpp"
#include "contract/manifest.hpp"
#include "contract/tensor.hpp"
#include "devices/device.hpp"
#include "execution/block.hpp"
#include "execution/control.hpp"
#include "execution/guided.hpp"

namespace ebca::internal {

// Opens a component by name, for given sizes: batch, contexts, tokens, height, width.
using OpenRunner = std::function<std::shared_ptr<Runner>(const std::string&, const Sizes&)>;

// What an evaluation reads beside sample and timestep.
struct Conditions {
    Array contexts;  // [B,S,T,D]
    // Empty for a UNet that takes none:
    Array text_embeds;  // [B,P]
    Array time_ids;     // [B,6]
};

// One UNet evaluation at fixed sizes. Owns its buffers; use from one thread at a time.
class Executor {
  public:
    // sizes: batch, contexts, tokens, height, width (latent). channels_last: tensors that are [B,h,w,C] in memory.
    // groups: of tokens, for the guided variants of the op; 0: none of these will run. `unet` must outlive it.
    // std::bad_alloc or ParameterError if there is not enough memory for these sizes.
    Executor(const UNetSpec& unet, OpenRunner open_runner, const Sizes& sizes, std::shared_ptr<Device> device,
             const std::vector<std::string>& channels_last = {}, int64_t groups = 0);

    // Inputs on the host, kept from step to step: sample [B,C,h,w], timestep [B], contexts [B,S,T,D], float32.
    const Tensor& sample() const { return host("sample"); }
    const Tensor& timestep() const { return host("timestep"); }
    const Tensor& contexts() const { return host("contexts"); }
    // Outputs on the host, valid until the next run: noise [B,C,h,w], contexts_out [B,S,T,D], float32.
    const Tensor& noise() const { return host("noise"); }
    const Tensor& contexts_out() const { return host("contexts_out"); }

    const Sizes& sizes() const { return sizes_; }
    const UNetSpec& unet() const { return unet_; }
    Device& device() const { return *device_; }

    // What guided variants read and write beside all this; null without groups.
    GuidedTensors* guided() { return guided_ ? &*guided_ : nullptr; }

    // What the first step writes, if that depends on the timestep alone (see TimeTable); else empty.
    const Block& time_embeddings() const { return *time_embeddings_; }

    // Open a component, as the steps do.
    std::shared_ptr<Runner> open(const std::string& component, const Sizes& sizes) const {
        return open_(component, sizes);
    }

    // Whether the host uses the device's arrays themselves.
    bool on_host() const { return seen_.at("timestep").host.data == seen_.at("timestep").array.data; }

    // Whether a variant runs the steps of the manifest, rather than the full UNet.
    bool runs_steps(Variant variant) const;

    // Copy conditions into the buffers that evaluations read; they have the shapes of these buffers.
    void set_conditions(const Conditions& conditions);

    // Copy a control into the buffers that the bound steps read.
    void set_control(const Control& control);

    // Bind and record a variant, so that the first run does not have to. embedded: as of `run`.
    void bind(Variant variant, bool embedded = false) { recorded(variant, embedded); }

    // The bound steps of a variant, or the full UNet if the engine has one and it computes the same. embedded: without
    // the first step, if that only embeds the timestep.
    std::vector<Call*> calls(Variant variant, bool embedded = false);

    // Inputs, outputs and controls on the device, by name.
    Tensors arrays() const;

    // Copy inputs, controls and masks to the device; `run` includes this.
    void upload() { device_->upload(reads(guided_ ? Variant::update_masked_guided : Variant::update_masked)); }

    // Wait for the device, and copy the outputs to the host; `run` includes this.
    void download() { device_->download(outputs()); }

    // One evaluation. A guided variant is used at the layers for subjects, and elsewhere the plain one. embedded: the
    // time embeddings are in the buffers already. CancelledError as soon as that is requested; null: never.
    void run(Variant variant, Cancellation* cancellation, bool embedded = false);

    // Called with a layer, q [B,N,C] and k [B,S,T,C] on the host.
    using Probe = std::function<void(int64_t layer, const Tensor& q, const Tensor& k)>;

    // One evaluation step by step, from embedding the timestep on; calls `probe` after the op of every layer.
    void run_probed(Variant variant, Cancellation* cancellation, const Probe& probe);

    // Attention and norm term of the energies, [L,B,S] each of L layers.
    using Energies = std::array<Array, 2>;

    // Those of the last run of the variant `energies`.
    Energies energies() const;

    // Run again step by step; a description of the step that first writes a value that is not finite, or "".
    std::string first_nonfinite(Variant variant);

  private:
    using Calls = std::vector<std::unique_ptr<Call>>;

    // The runner of a step: a graph, or the device's own kernel for the op.
    struct Operands {
        std::shared_ptr<Runner> runner;
        std::unique_ptr<OpKernel> kernel;
        Tensors inputs, outputs;
    };

    Replay& recorded(Variant variant, bool embedded);
    Calls& full_unet();
    Calls& steps(Variant variant);
    Operands operands(const Step& step, Variant variant) const;
    Operands segment_operands(const Step& step, Variant variant) const;
    std::vector<Shared> inputs() const;
    std::vector<Shared> outputs() const;
    std::vector<Shared> reads(Variant variant) const;
    std::vector<Shared> writes(Variant variant) const;
    SharedMemory own(const Shape& shape) { return {*device_, shape, DType::float32}; }
    const Tensor& host(const char* name) const { return seen_.at(name).host; }

    const UNetSpec& unet_;
    OpenRunner open_;
    Sizes sizes_;
    std::shared_ptr<Device> device_;
    std::optional<Memory> arena_;
    std::optional<Block> time_embeddings_;
    std::map<std::string, Tensor> tensors_;  // of the device
    std::map<std::string, Shared> seen_;     // inputs and outputs of the UNet
    std::map<std::string, SharedMemory> control_;
    std::vector<std::pair<int64_t, int64_t>> layer_sizes_;
    std::map<std::pair<int64_t, int64_t>, SharedMemory> masks_;
    std::optional<GuidedTensors> guided_;
    std::optional<Memory> zero_g_;                       // in place of g in the variant that does not compute it
    std::optional<Memory> zero_controls_;                // in place of what ControlNets write
    std::vector<std::array<SharedMemory, 2>> energies_;  // [B,S] of each layer; none until they are computed
    std::vector<Memory> workspaces_;                     // of bound kernels
    std::map<Variant, Calls> bound_;
    Calls full_unet_;
    std::map<std::pair<Variant, bool>, std::unique_ptr<Replay>> recorded_;
};

}  // namespace ebca::internal
