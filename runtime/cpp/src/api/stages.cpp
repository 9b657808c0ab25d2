// The functions of ebca.h that run a single stage.
#include "stages.hpp"

#include "api/arguments.hpp"
#include "api/handles.hpp"
#include "api/made.hpp"
#include "api/structs.hpp"
#include "ebca.h"

namespace ebca::internal {
namespace {

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
    return made(engine, result, [&] { return encode_prompt(*engine->engine, encode_prompt_request(params)); });
}

EBCA_API ebca_status ebca_engine_encode_images(ebca_engine* engine, const ebca_encode_images_params* params,
                                               ebca_result** result) {
    return made(engine, result, [&] { return encode_images(*engine->engine, encode_images_request(params)); });
}

EBCA_API ebca_status ebca_engine_decode(ebca_engine* engine, const ebca_tensor* latents, ebca_result** result) {
    return made(engine, result, [&] { return decode(*engine->engine, latents_of(*engine->engine, latents)); });
}

EBCA_API ebca_status ebca_engine_preview(ebca_engine* engine, const ebca_tensor* latents, double scale,
                                         ebca_result** result) {
    return made(engine, result, [&] { return preview(*engine->engine, latents_of(*engine->engine, latents), scale); });
}
}
}  // namespace ebca::internal
