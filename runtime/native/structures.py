"""The enums and structs of ebca.h for ctypes.

Written by `python -m ebca.runtime.schema.generate` from schema.toml; edit that file instead.
"""

import ctypes
from ctypes import (
    POINTER,
    c_char,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from enum import IntEnum, IntFlag

from ebca.errors import (
    BackendError,
    CancelledError,
    EbcaError,
    EngineError,
    NumericalError,
    OutOfMemoryError,
    ParameterError,
)

ABI_VERSION = 1
"""EBCA_ABI_VERSION of the header that these structs are from."""


class Status(IntEnum):
    OK = 0
    PARAMETER = 1
    ENGINE = 2
    BACKEND = 3
    NUMERICAL = 4
    CANCELLED = 5
    UNSUPPORTED = 6
    OUT_OF_MEMORY = 7
    INTERNAL = 8


class LogLevel(IntEnum):
    WARNING = 0
    INFO = 1


class Memory(IntEnum):
    HOST = 0
    CUDA = 1


class Task(IntFlag):
    TEXT_TO_IMAGE = 1
    EDITING = 2
    IMAGE_TO_IMAGE = 4
    INPAINTING = 8
    INVERSION = 16


class ScheduleKind(IntEnum):
    CONSTANT = 0
    STEP = 1
    REVERSE_STEP = 2
    LINEAR = 3
    EXPONENTIAL = 4
    VALUES = 5


ERRORS: dict[int, type[EbcaError]] = {
    1: ParameterError,
    2: EngineError,
    3: BackendError,
    4: NumericalError,
    5: CancelledError,
    7: OutOfMemoryError,
}
"""The error of each status that has one in `ebca.errors`."""


# void (*)(ebca_log_level level, const char* message, void* user_data)
LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
# void (*)(int64_t done, int64_t total, const char* component, void* user_data)
PrepareCallback = ctypes.CFUNCTYPE(None, c_int64, c_int64, c_char_p, c_void_p)
# int64_t (*)(const char* file, int64_t offset, void* buffer, int64_t size, void* user_data)
ReadCallback = ctypes.CFUNCTYPE(c_int64, c_char_p, c_int64, c_void_p, c_int64, c_void_p)


class DeviceInfo(ctypes.Structure):
    """ebca_device_info."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("device", c_char * 16),
        ("name", c_char * 240),
        ("memory_bytes", c_int64),
        ("capability_major", c_int32),
        ("capability_minor", c_int32),
    )


class EngineParams(ctypes.Structure):
    """ebca_engine_params."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("abi_version", c_uint32),
        ("path", c_char_p),
        ("device", c_char_p),
        ("onnxruntime_library", c_char_p),
        ("cache_dir", c_char_p),
        ("threads", c_int32),
        ("cuda_stream", c_void_p),
        ("on_prepare", PrepareCallback),
        ("on_prepare_data", c_void_p),
        ("log", LogCallback),
        ("log_data", c_void_p),
        ("backend", c_char_p),
        ("precision", c_char_p),
        ("openvino_library", c_char_p),
        ("kernels_dir", c_char_p),
        ("tensorrt_rtx_library", c_char_p),
        ("read", ReadCallback),
        ("read_data", c_void_p),
    )


class EngineInfo(ctypes.Structure):
    """ebca_engine_info."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("model", c_char_p),
        ("kind", c_char_p),
        ("backend", c_char_p),
        ("backend_version", c_char_p),
        ("tasks", c_uint32),
        ("has_text_encoder", c_int32),
        ("has_vae", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("downscale", c_int32),
        ("latent_channels", c_int32),
        ("context_width", c_int32),
        ("max_tokens", c_int32),
        ("threads", c_int32),
        ("guidance_scale", c_double),
        ("scheduler", c_char_p),
        ("schedulers", c_char_p),
        ("pooled_width", c_int32),
    )


class SessionParams(ctypes.Structure):
    """ebca_session_params."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("height", c_int32),
        ("width", c_int32),
        ("batch", c_int32),
    )


class Tensor(ctypes.Structure):
    """ebca_tensor."""

    _fields_ = (
        ("data", POINTER(c_float)),
        ("shape", c_int64 * 4),
        ("rank", c_int32),
        ("memory", c_int32),
        ("reserved", c_uint64 * 2),
    )


class Prompt(ctypes.Structure):
    """ebca_prompt."""

    _fields_ = (
        ("texts", POINTER(c_char_p)),
        ("count", c_size_t),
        ("embeds", Tensor),
        ("reserved", c_uint64 * 2),
    )


class Schedule(ctypes.Structure):
    """ebca_schedule."""

    _fields_ = (
        ("kind", c_int32),
        ("value", c_double),
        ("parameter", c_double),
        ("values", POINTER(c_double)),
        ("count", c_size_t),
        ("reserved", c_uint64 * 2),
    )


class TokenWeight(ctypes.Structure):
    """ebca_token_weight."""

    _fields_ = (
        ("word", c_char_p),
        ("position", c_int64),
        ("factor", c_double),
        ("reserved", c_uint64 * 2),
    )


class Edit(ctypes.Structure):
    """ebca_edit."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("prompt", Prompt),
        ("direction", c_int32),
        ("alpha", Schedule),
        ("gamma_attn", Schedule),
        ("gamma_norm", Schedule),
    )


class Image(ctypes.Structure):
    """ebca_image."""

    _fields_ = (
        ("pixels", POINTER(c_uint8)),
        ("height", c_int32),
        ("width", c_int32),
        ("channels", c_int32),
        ("reserved", c_uint64 * 2),
    )


class Region(ctypes.Structure):
    """ebca_region."""

    _fields_ = (
        ("subject", c_char_p),
        ("mask", Image),
        ("reserved", c_uint64 * 2),
    )


class RePaintParams(ctypes.Structure):
    """ebca_repaint_params."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("jump_length", c_int32),
        ("jump_count", c_int32),
        ("eta", c_double),
        ("update_known", c_int32),
    )


class StepInfo(ctypes.Structure):
    """ebca_step_info."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("index", c_int64),
        ("total", c_int64),
        ("timestep", c_double),
        ("latents", Tensor),
        ("contexts", Tensor),
        ("unit_scale", c_double),
    )


# int (*)(const ebca_step_info* info, void* user_data)
StepCallback = ctypes.CFUNCTYPE(ctypes.c_int, POINTER(StepInfo), c_void_p)


class SizeConditions(ctypes.Structure):
    """ebca_size_conditions."""

    _fields_ = (
        ("original_height", c_int32),
        ("original_width", c_int32),
        ("crop_top", c_int32),
        ("crop_left", c_int32),
        ("target_height", c_int32),
        ("target_width", c_int32),
        ("reserved", c_uint64 * 2),
    )


class GenerateParams(ctypes.Structure):
    """ebca_generate_params."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("prompt", Prompt),
        ("negative_prompt", Prompt),
        ("steps", c_int32),
        ("guidance_scale", c_double),
        ("scheduler", c_char_p),
        ("seeds", POINTER(c_int64)),
        ("seed_count", c_size_t),
        ("gamma_attn", Schedule),
        ("gamma_norm", Schedule),
        ("token_weights", POINTER(TokenWeight)),
        ("token_weight_count", c_size_t),
        ("norm_factor", c_double),
        ("edits", POINTER(Edit)),
        ("edit_count", c_size_t),
        ("reset_edits", c_int32),
        ("images", POINTER(Image)),
        ("image_count", c_size_t),
        ("masks", POINTER(Image)),
        ("mask_count", c_size_t),
        ("strength", c_double),
        ("repaint", POINTER(RePaintParams)),
        ("composite", c_int32),
        ("latents", Tensor),
        ("latents_only", c_int32),
        ("on_step", StepCallback),
        ("on_step_data", c_void_p),
        ("subjects", POINTER(c_char_p)),
        ("subject_count", c_size_t),
        ("subject_exclusion", Schedule),
        ("subject_balance", Schedule),
        ("subject_window", c_double),
        ("regions", POINTER(Region)),
        ("region_count", c_size_t),
        ("prompt_weighting", c_int32),
        ("long_prompts", c_int32),
        ("clip_skip", c_int32),
        ("record_energies", c_int32),
        ("record_attention", c_int32),
        ("vae_tiling", c_int32),
        ("prompt_2", Prompt),
        ("negative_prompt_2", Prompt),
        ("pooled_prompt_embeds", Tensor),
        ("negative_pooled_prompt_embeds", Tensor),
        ("size_conditions", SizeConditions),
        ("negative_size_conditions", SizeConditions),
    )


class RegularizeParams(ctypes.Structure):
    """ebca_regularize_params."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("rounds", c_int32),
        ("rolls", c_int32),
        ("auto_correlation", c_double),
        ("kl", c_double),
        ("seed", c_uint32),
    )


class InvertParams(ctypes.Structure):
    """ebca_invert_params."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("images", POINTER(Image)),
        ("image_count", c_size_t),
        ("latents", Tensor),
        ("prompt", Prompt),
        ("steps", c_int32),
        ("regularize", POINTER(RegularizeParams)),
        ("on_step", StepCallback),
        ("on_step_data", c_void_p),
        ("prompt_weighting", c_int32),
        ("long_prompts", c_int32),
        ("clip_skip", c_int32),
        ("vae_tiling", c_int32),
        ("prompt_2", Prompt),
        ("pooled_prompt_embeds", Tensor),
        ("size_conditions", SizeConditions),
    )


class EncodePromptParams(ctypes.Structure):
    """ebca_encode_prompt_params."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("texts", POINTER(c_char_p)),
        ("count", c_size_t),
        ("prompt_weighting", c_int32),
        ("long_prompts", c_int32),
        ("clip_skip", c_int32),
        ("texts_2", POINTER(c_char_p)),
        ("count_2", c_size_t),
    )


class EncodeImagesParams(ctypes.Structure):
    """ebca_encode_images_params."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("images", POINTER(Image)),
        ("image_count", c_size_t),
        ("height", c_int32),
        ("width", c_int32),
        ("sample", c_int32),
        ("seeds", POINTER(c_int64)),
        ("seed_count", c_size_t),
    )


class DenoiseParams(ctypes.Structure):
    """ebca_denoise_params."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("sample", Tensor),
        ("timesteps", POINTER(c_double)),
        ("timestep_count", c_size_t),
        ("contexts", Tensor),
        ("gamma_attn", Tensor),
        ("gamma_norm", Tensor),
        ("weights", Tensor),
        ("mask", Tensor),
        ("norm_factor", c_double),
        ("tie_unconditional", c_int32),
        ("rows_per_image", c_int32),
        ("record_energies", c_int32),
        ("text_embeds", Tensor),
        ("time_ids", Tensor),
    )


class Result(ctypes.Structure):
    """ebca_result."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("task", c_char_p),
        ("scheduler", c_char_p),
        ("image_count", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("pixels", POINTER(c_uint8)),
        ("memory", c_int32),
        ("latents", Tensor),
        ("evaluations", c_size_t),
        ("timesteps", POINTER(c_double)),
        ("unet_seconds", POINTER(c_double)),
        ("text_encoder_seconds", c_double),
        ("vae_encoder_seconds", c_double),
        ("open_seconds", c_double),
        ("scheduler_seconds", c_double),
        ("vae_seconds", c_double),
        ("seeds", POINTER(c_int64)),
        ("seed_count", c_size_t),
        ("embeds", Tensor),
        ("noise", Tensor),
        ("contexts", Tensor),
        ("attention_energies", Tensor),
        ("norm_energies", Tensor),
        ("attention_maps", Tensor),
        ("pooled_embeds", Tensor),
    )


PARAMS: dict[str, type[ctypes.Structure]] = {
    "engine_params": EngineParams,
    "session_params": SessionParams,
    "edit": Edit,
    "repaint_params": RePaintParams,
    "generate_params": GenerateParams,
    "regularize_params": RegularizeParams,
    "invert_params": InvertParams,
    "encode_prompt_params": EncodePromptParams,
    "encode_images_params": EncodeImagesParams,
    "denoise_params": DenoiseParams,
}
"""Structs with an _init function, by the name of that function."""
