// The structs of ebca.h to the library's own, checked, and results back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>

#include "api/defaults.hpp"
#include "ebca.h"
#include "engine.hpp"
#include "parameters.hpp"
#include "session.hpp"
#include "stages.hpp"

namespace ebca::internal {

// Defaults into the caller's struct. Only the caller knows its size: it may be compiled against another header.
template <typename Params>
void fill(Params* target, size_t size) {
    if (!target || size < sizeof target->struct_size) return;
    Params own{};
    set_defaults(own);
    own.struct_size = size;
    std::memset(target, 0, size);
    std::memcpy(target, &own, std::min(size, sizeof own));
}

// A copy of the caller's struct, which may come from an older header.
template <typename Params>
Params checked(const Params* given, const char* name) {
    constexpr size_t first = first_size<Params>;
    Params params{};
    set_defaults(params);
    if (!given) return params;
    if (given->struct_size < first || given->struct_size > sizeof(Params)) {
        if constexpr (std::is_same_v<Params, ebca_engine_info>) {
            throw rules::struct_size_plain(name, given->struct_size, first, sizeof(Params), ebca_version());
        } else {
            throw rules::struct_size(name, given->struct_size, first, sizeof(Params), ebca_version());
        }
    }
    std::memcpy(&params, given, given->struct_size);
    return params;
}

template <typename Params>
const Params* needed(const Params* given, const char* name) {
    if (!given) throw rules::is_null(name);
    return given;
}

// All of them: ParameterError for values that cannot be. Shapes and counts are compared with what the session takes
// before anything is copied. Arrays on a GPU are read through the engine's device.
EngineOptions engine_options(const ebca_engine_params* given);
GenerateRequest generate_request(const Engine& engine, const Session& session, const ebca_generate_params* given);
InvertRequest invert_request(const Engine& engine, const Session& session, const ebca_invert_params* given);
DenoiseRequest denoise_request(const Engine& engine, const Session& session, const ebca_denoise_params* given);
Conditioning encode_prompt_request(const ebca_encode_prompt_params* given);
EncodeImagesRequest encode_images_request(const ebca_encode_images_params* given);

// The names of an engine's schedulers, separated by commas.
std::string scheduler_names(const Manifest& manifest);
// `schedulers` must outlive what is returned, as the engine must.
ebca_engine_info engine_info(Engine& engine, const std::string& schedulers);

// The values of an array, which must outlive it.
ebca_tensor tensor(const Array& array);

// A result that ebca_result_free frees.
ebca_result* handed_over(Result&& made);
void free_result(ebca_result* result);
// Its pixels and tensors to the memory of a GPU. If that throws, they stay where they are.
void move_to(Device& device, ebca_result& result);

}  // namespace ebca::internal
