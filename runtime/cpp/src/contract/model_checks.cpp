#include "contract/model_checks.hpp"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "contract/checks.hpp"
#include "error.hpp"

namespace ebca::internal {
namespace {

// The UNet takes what the text encoder pools, and the second encoder's padding is known.
void check_pooled(const Manifest& manifest, const TextEncoderSpec& encoder) {
    auto shown = [](int64_t width) { return width ? std::to_string(width) : "None"; };
    int64_t taken = manifest.unet.pooled_size();
    if (encoder.pooled_size != taken) {
        throw EngineError(text("text_encoder.pooled_size is ", shown(encoder.pooled_size), ", and the UNet's ",
                               kTextEmbeds, " are ", shown(taken), " wide"));
    }
    int64_t first = encoder.first_hidden_size;
    if ((encoder.pooled_size == 0) != (first == 0) || first >= encoder.hidden_size) {
        throw EngineError(
            text("text_encoder.first_hidden_size is ", shown(first), ", beside ", encoder.hidden_size, " in all"));
    }
    if (!manifest.tokenizer) return;
    bool padded = manifest.tokenizer->pad_2.has_value();
    if (padded == (encoder.pooled_size > 0)) return;
    throw EngineError(padded ? "tokenizer.info has pad_token_2, and there is one text encoder"
                             : "there are two text encoders, and tokenizer.info has no pad_token_2");
}

// A tensor in which every dimension that is the same for all sizes is a number.
bool is_resolved(const TensorSpec& mine, const TensorSpec& its, const Plan& plan) {
    std::vector<Dim> expected;
    for (const Dim& dim : its.shape) {
        Sizes fixed;
        for (const Dim::Factor& factor : dim.factors) {
            auto found = plan.sizes.find(factor.name);
            if (found == plan.sizes.end()) return false;
            if (found->second.front() == found->second.back()) fixed[factor.name] = found->second.front();
        }
        bool all = std::all_of(dim.factors.begin(), dim.factors.end(),
                               [&](const Dim::Factor& factor) { return fixed.count(factor.name) > 0; });
        expected.push_back(dim);
        if (all) {
            expected.back() = Dim();
            expected.back().constant = evaluate(dim, fixed);
        }
    }
    return mine.dtype == its.dtype && is_same(mine.shape, expected);
}

}  // namespace

void check_kind(const Manifest& manifest) {
    const UNetSpec& unet = manifest.unet;
    const std::string& kind = manifest.kind;
    bool complete = manifest.text_encoder && manifest.vae && manifest.tokenizer;
    if (complete == (kind == "unet")) {
        throw EngineError(
            text("model.kind is '", kind, "' of a directory ", complete ? "with" : "without", " all other models"));
    }
    int64_t expected = unet.out_channels;
    if (kind == "inpainting") expected = 2 * unet.out_channels + 1;
    if (kind == "instruct-pix2pix") expected = 2 * unet.out_channels;
    if (kind != "unet" && unet.in_channels != expected) {
        throw EngineError(
            text("model.kind is '", kind, "', and unet.in_channels is ", unet.in_channels, " instead of ", expected));
    }
}

void check_text(const Manifest& manifest) {
    const auto& encoder = manifest.text_encoder;
    const auto& tokenizer = manifest.tokenizer;
    if (tokenizer) need_file(manifest, tokenizer->file, "the tokenizer");
    if (!encoder) return;
    const TensorSpec ids{DType::int64, shape("batch", encoder->max_length)};
    TensorSpecs inputs{{"input_ids", ids}},
        outputs{{"hidden_states", floats(shape("batch", encoder->max_length, encoder->hidden_size))}};
    if (encoder->pooled_size) {
        inputs["input_ids_2"] = ids;
        outputs["pooled"] = floats(shape("batch", encoder->pooled_size));
    }
    auto check = [&](const std::string& name, const std::string& who) {
        const Component& component = need_component(manifest, name, who);
        check_tensors(who, component.inputs, inputs);
        check_tensors(who, component.outputs, outputs);
    };
    check(encoder->component, "the text encoder");
    inputs["skip"] = {DType::int64, shape(1)};
    if (!encoder->layers_component.empty()) check(encoder->layers_component, "the text encoder's layers");
    check_pooled(manifest, *encoder);
    if (encoder->hidden_size != manifest.unet.context_dim) {
        throw EngineError(text("text_encoder.hidden_size is ", encoder->hidden_size, ", and unet.context_dim is ",
                               manifest.unet.context_dim));
    }
    if (!tokenizer) throw EngineError("there is a text encoder, but no tokenizer");
    if (tokenizer->model_max_length != encoder->max_length) {
        throw EngineError(text("the tokenizer makes ", tokenizer->model_max_length,
                               " tokens, and text_encoder.max_length is ", encoder->max_length));
    }
}

void check_vae(const Manifest& manifest) {
    if (!manifest.vae) return;
    const VaeSpec& vae = *manifest.vae;
    if (vae.latent_channels != manifest.unet.out_channels) {
        throw EngineError(text("vae.latent_channels is ", vae.latent_channels, ", and unet.out_channels is ",
                               manifest.unet.out_channels));
    }
    auto times = [&](const char* side) { return parse_dim(std::string_view(text(vae.downscale, "*", side))); };
    const TensorSpec latents = floats(shape("batch", vae.latent_channels, "height", "width"));
    const TensorSpec image = floats({parse_dim("batch"), parse_dim(int64_t{3}), times("height"), times("width")});
    const Component& decoder = need_component(manifest, vae.decoder, "the VAE");
    check_tensors("the VAE's decoder", decoder.inputs, {{"latents", latents}});
    check_tensors("the VAE's decoder", decoder.outputs, {{"image", image}});
    const Component& encoder = need_component(manifest, vae.encoder, "the VAE");
    check_tensors("the VAE's encoder", encoder.inputs, {{"image", image}});
    check_tensors("the VAE's encoder", encoder.outputs, {{"mean", latents}, {"std", latents}});
    if (vae.preview.empty()) return;
    const Component& preview = need_component(manifest, vae.preview, "the VAE");
    check_tensors("the decoder of previews", preview.inputs, {{"latents", latents}});
    check_tensors("the decoder of previews", preview.outputs, {{"image", image}});
}

void check_schedulers(const Manifest& manifest) {
    const SchedulerSection& section = manifest.schedulers;
    for (const auto& [role, name] :
         {std::pair{"default", section.standard}, {"image_to_image", section.image_to_image}}) {
        if (!name.empty() && !section.tables.count(name)) {
            throw EngineError(text("schedulers.", role, " is '", name, "', which has no table"));
        }
    }
    need_file(manifest, section.alphas_cumprod, "schedulers.alphas_cumprod");
    int64_t bytes = manifest.files.at(section.alphas_cumprod).size;
    if (bytes != 8 * section.train_timesteps) {
        throw EngineError(text("num_train_timesteps is ", section.train_timesteps, ", and '", section.alphas_cumprod,
                               "' has ", bytes, " bytes instead of 8 each"));
    }
    for (const auto& [name, table] : section.tables) {
        need_file(manifest, table.file, "the scheduler " + name);
        int64_t needed = 0, size = manifest.files.at(table.file).size;
        for (const auto& [steps, evaluations] : table.steps) needed += 8 * table.values(evaluations);
        // Another size means that records lie elsewhere than the manifest says.
        if (size != needed) {
            throw EngineError(
                text("the tables of ", name, " have ", needed, " bytes, and '", table.file, "' has ", size));
        }
    }
}

void check_plans(const Manifest& manifest, const std::string& library, const LibraryPlans& plans) {
    for (const auto& [name, entries] : plans) {
        const Component& component = need_component(manifest, name, "plans." + library);
        for (const Plan& plan : entries) {
            need_file(manifest, plan.file, "plans." + library);
            for (auto [mine, its] : {std::pair{&plan.inputs, &component.inputs}, {&plan.outputs, &component.outputs}}) {
                bool same =
                    std::equal(mine->begin(), mine->end(), its->begin(), its->end(), [&](const auto& a, const auto& b) {
                        return a.first == b.first && is_resolved(a.second, b.second, plan);
                    });
                if (!same) {
                    throw EngineError(
                        text("the plan '", plan.file, "' and component '", name, "' have different tensors"));
                }
            }
        }
    }
}

}  // namespace ebca::internal
