// The names of the enums of ebca.h.
// Written by `python -m ebca.runtime.schema.generate` from schema.toml; edit that file instead.
#include "api/enum_names.hpp"

// clang-format off
namespace ebca::internal {
extern "C" {

static constexpr NamedValue k_status[] = {
    {"ok", EBCA_OK},
    {"error_parameter", EBCA_ERROR_PARAMETER},
    {"error_engine", EBCA_ERROR_ENGINE},
    {"error_backend", EBCA_ERROR_BACKEND},
    {"error_numerical", EBCA_ERROR_NUMERICAL},
    {"error_cancelled", EBCA_ERROR_CANCELLED},
    {"error_unsupported", EBCA_ERROR_UNSUPPORTED},
    {"error_out_of_memory", EBCA_ERROR_OUT_OF_MEMORY},
    {"error_internal", EBCA_ERROR_INTERNAL},
};

EBCA_API const char* ebca_status_name(ebca_status value) {
    return name_of(k_status, value);
}

EBCA_API ebca_status ebca_status_from_name(const char* name, ebca_status* value) {
    return from_name(k_status, "ebca_status", name, value);
}

static constexpr NamedValue k_log_level[] = {
    {"warning", EBCA_LOG_WARNING},
    {"info", EBCA_LOG_INFO},
};

EBCA_API const char* ebca_log_level_name(ebca_log_level value) {
    return name_of(k_log_level, value);
}

EBCA_API ebca_status ebca_log_level_from_name(const char* name, ebca_log_level* value) {
    return from_name(k_log_level, "ebca_log_level", name, value);
}

static constexpr NamedValue k_memory[] = {
    {"host", EBCA_MEMORY_HOST},
    {"cuda", EBCA_MEMORY_CUDA},
};

EBCA_API const char* ebca_memory_name(ebca_memory value) {
    return name_of(k_memory, value);
}

EBCA_API ebca_status ebca_memory_from_name(const char* name, ebca_memory* value) {
    return from_name(k_memory, "ebca_memory", name, value);
}

static constexpr NamedValue k_task[] = {
    {"text_to_image", EBCA_TASK_TEXT_TO_IMAGE},
    {"editing", EBCA_TASK_EDITING},
    {"image_to_image", EBCA_TASK_IMAGE_TO_IMAGE},
    {"inpainting", EBCA_TASK_INPAINTING},
    {"inversion", EBCA_TASK_INVERSION},
};

EBCA_API const char* ebca_task_name(uint32_t value) {
    return name_of(k_task, value);
}

EBCA_API ebca_status ebca_task_from_name(const char* name, uint32_t* value) {
    return from_name(k_task, "ebca_task", name, value);
}

static constexpr NamedValue k_schedule_kind[] = {
    {"constant", EBCA_SCHEDULE_CONSTANT},
    {"step", EBCA_SCHEDULE_STEP},
    {"reverse_step", EBCA_SCHEDULE_REVERSE_STEP},
    {"linear", EBCA_SCHEDULE_LINEAR},
    {"exponential", EBCA_SCHEDULE_EXPONENTIAL},
    {"values", EBCA_SCHEDULE_VALUES},
};

EBCA_API const char* ebca_schedule_kind_name(ebca_schedule_kind value) {
    return name_of(k_schedule_kind, value);
}

EBCA_API ebca_status ebca_schedule_kind_from_name(const char* name, ebca_schedule_kind* value) {
    return from_name(k_schedule_kind, "ebca_schedule_kind", name, value);
}

}
}  // namespace ebca::internal
