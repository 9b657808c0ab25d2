#include "backends/ort_binding.hpp"

#include "error.hpp"

namespace ebca::internal {
namespace {

ONNXTensorElementDataType onnx_type(DType dtype) {
    switch (dtype) {
        case DType::float16:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        case DType::int64:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        case DType::int32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
        default:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
}

}  // namespace

OrtPointer<OrtSessionOptions> session_options(const OrtLibrary& ort, int threads, const Log& log) {
    const OrtApi& api = ort.api();
    OrtSessionOptions* raw = nullptr;
    ort.check(api.CreateSessionOptions(&raw), "cannot make session options");
    OrtPointer<OrtSessionOptions> options(raw, {api.ReleaseSessionOptions});
    ort.check(api.SetSessionLogSeverityLevel(raw, ORT_LOGGING_LEVEL_ERROR), "has no such level");
    ort.check(api.SetUserLoggingFunction(raw, ort_log, const_cast<Log*>(&log)), "cannot set its log");
    // A pattern reserves each session's peak as one block of its own, which the shared arena then keeps for each; on a
    // GPU it is allocated at the second run of a shape, which may be inside a capture.
    ort.check(api.DisableMemPattern(raw), "cannot switch memory patterns off");
    ort.check(api.SetIntraOpNumThreads(raw, threads), "cannot set its threads");
    return options;
}

std::set<std::string> input_names(const OrtLibrary& ort, const OrtSession& session) {
    OrtAllocator* allocator = nullptr;
    ort.check(ort.api().GetAllocatorWithDefaultOptions(&allocator), "has no allocator");
    size_t count = 0;
    ort.check(ort.api().SessionGetInputCount(&session, &count), "cannot list inputs");
    std::set<std::string> names;
    for (size_t i = 0; i < count; ++i) {
        char* input = nullptr;
        ort.check(ort.api().SessionGetInputName(&session, i, allocator, &input), "cannot list inputs");
        names.insert(input);
        ort.check(ort.api().AllocatorFree(allocator, input), "cannot free a name");
    }
    return names;
}

OrtPointer<OrtIoBinding> bind_arrays(const OrtLibrary& ort, OrtSession& session, const std::string& name,
                                     const std::set<std::string>& known, const OrtMemoryInfo& place,
                                     const Tensors& inputs, const Tensors& outputs) {
    const OrtApi& api = ort.api();
    OrtIoBinding* raw = nullptr;
    ort.check(api.CreateIoBinding(&session, &raw), text("cannot bind ", name));
    OrtPointer<OrtIoBinding> binding(raw, {api.ReleaseIoBinding});
    auto value = [&](const Tensor& tensor) {
        OrtValue* made = nullptr;
        auto bytes = static_cast<size_t>(byte_size(tensor.shape, tensor.dtype));
        ort.check(api.CreateTensorWithDataAsOrtValue(&place, tensor.data, bytes, tensor.shape.data(),
                                                     tensor.shape.size(), onnx_type(tensor.dtype), &made),
                  text("cannot bind ", name));
        return OrtPointer<OrtValue>(made, {api.ReleaseValue});
    };
    for (const auto& [input, tensor] : inputs) {
        if (!known.count(input)) continue;
        ort.check(api.BindInput(raw, input.c_str(), value(tensor).get()), text("cannot bind ", input, " of ", name));
    }
    for (const auto& [output, tensor] : outputs) {
        ort.check(api.BindOutput(raw, output.c_str(), value(tensor).get()), text("cannot bind ", output, " of ", name));
    }
    return binding;
}

}  // namespace ebca::internal
