// The functions of ebca.h that run a single stage.
#include "stages.hpp"

#include "api/arguments.hpp"
#include "api/guard.hpp"
#include "api/handles.hpp"
#include "api/structs.hpp"
#include "ebca.h"

namespace ebca::internal {
namespace {

// Runs `work`, which returns a Result.
template <typename Work>
ebca_status stage(ebca_engine* engine, ebca_result** result, Work&& work) noexcept {
    if (result) *result = nullptr;
    return guarded(engine, [&] {
        if (!result) throw rules::target_null("result");
        *result = handed_over(work(*engine->engine));
    });
}

Array latents_of(const Engine& engine, const ebca_tensor* latents) {
    const Shape shape = needed_shape(*needed(latents, "latents"), "latents");
    check_latents_shape(engine, shape);
    return copied(engine.device(), *latents, shape);
}

}  // namespace

extern "C" {

EBCA_API void ebca_encode_prompt_params_init(ebca_encode_prompt_params* params, size_t struct_size) {
    fill(params, struct_size);
}

EBCA_API void ebca_encode_images_params_init(ebca_encode_images_params* params, size_t struct_size) {
    fill(params, struct_size);
}

EBCA_API ebca_status ebca_engine_encode_prompt(ebca_engine* engine, const ebca_encode_prompt_params* params,
                                               ebca_result** result) {
    return stage(engine, result, [&](Engine& own) { return encode_prompt(own, encode_prompt_request(params)); });
}

EBCA_API ebca_status ebca_engine_encode_images(ebca_engine* engine, const ebca_encode_images_params* params,
                                               ebca_result** result) {
    return stage(engine, result, [&](Engine& own) { return encode_images(own, encode_images_request(params)); });
}

EBCA_API ebca_status ebca_engine_decode(ebca_engine* engine, const ebca_tensor* latents, ebca_result** result) {
    return stage(engine, result, [&](Engine& own) { return decode(own, latents_of(own, latents)); });
}

EBCA_API ebca_status ebca_engine_preview(ebca_engine* engine, const ebca_tensor* latents, double scale,
                                         ebca_result** result) {
    return stage(engine, result, [&](Engine& own) { return preview(own, latents_of(own, latents), scale); });
}
}
}  // namespace ebca::internal
