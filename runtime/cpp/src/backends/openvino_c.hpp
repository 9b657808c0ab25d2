// The part of OpenVINO's C API that we call, so that building needs nothing of OpenVINO: the functions are looked up in
// the library at run time. tests/cpp compares every one of them with OpenVINO's own headers.
#pragma once

#include <cstddef>
#include <cstdint>

struct ov_core;
struct ov_model;
struct ov_compiled_model;
struct ov_infer_request;
struct ov_tensor;
struct ov_output_const_port;

namespace ebca::internal::openvino_c {

using Status = int;            // ov_status_e: 0 is success
using ElementType = unsigned;  // ov_element_type_e

constexpr ElementType kFloat16 = 3;
constexpr ElementType kFloat32 = 4;
constexpr ElementType kInt32 = 9;
constexpr ElementType kInt64 = 10;

struct Shape {
    int64_t rank;
    int64_t* dims;
};

struct Version {
    const char* build_number;  // "2026.4.1-22982-..."
    const char* description;
};

// Named as in OpenVINO without the prefix: `ov.core_create` is ov_core_create.
struct Functions {
    Status (*get_openvino_version)(Version* version);
    void (*version_free)(Version* version);
    const char* (*get_last_err_msg)();  // the caller's, to be freed
    void (*free)(const char* content);

    Status (*core_create)(ov_core** core);
    void (*core_free)(ov_core* core);
    Status (*core_get_property)(const ov_core* core, const char* device, const char* key, char** value);
    Status (*core_read_model)(const ov_core* core, const char* path, const char* weights, ov_model** model);
    void (*model_free)(ov_model* model);

    // Followed by `arguments` texts: keys and values of properties in turn.
    Status (*core_compile_model)(const ov_core* core, const ov_model* model, const char* device, size_t arguments,
                                 ov_compiled_model** compiled, ...);
    void (*compiled_model_free)(ov_compiled_model* compiled);
    Status (*compiled_model_inputs_size)(const ov_compiled_model* compiled, size_t* size);
    Status (*compiled_model_input_by_name)(const ov_compiled_model* compiled, const char* name,
                                           ov_output_const_port** port);
    void (*output_const_port_free)(ov_output_const_port* port);

    Status (*compiled_model_create_infer_request)(const ov_compiled_model* compiled, ov_infer_request** request);
    void (*infer_request_free)(ov_infer_request* request);
    Status (*infer_request_set_tensor)(ov_infer_request* request, const char* name, const ov_tensor* tensor);
    Status (*infer_request_start_async)(ov_infer_request* request);
    Status (*infer_request_wait)(ov_infer_request* request);
    Status (*infer_request_cancel)(ov_infer_request* request);

    // The memory stays the caller's.
    Status (*tensor_create_from_host_ptr)(ElementType type, Shape shape, void* memory, ov_tensor** tensor);
    void (*tensor_free)(ov_tensor* tensor);
};

}  // namespace ebca::internal::openvino_c
