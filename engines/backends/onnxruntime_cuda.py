"""ONNX Runtime's CUDA provider, for GPUs without TensorRT plans.

Everything is enqueued on the caller's stream and nothing waits for it, so the caller can capture a whole step in one
CUDA graph. ONNX Runtime's own CUDA graphs stay off, since they cannot be launched inside another capture. A component
is opened for one set of sizes: with sizes unknown, arithmetic on shapes runs between the kernels, with copies to the
host and back that no graph can hold. Written for ONNX Runtime 1.31, whose provider refuses an allocator of the caller
together with a stream of the caller; hence the shared arena.
"""

import os
import weakref
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ebca.engines.backends.gpu_target import GpuTarget
from ebca.engines.backends.onnxruntime import OnnxRuntimeRunner, is_out_of_memory
from ebca.engines.backends.onnxruntime_provider import PROVIDER, preload
from ebca.engines.backends.protocol import Backend
from ebca.engines.contract.manifest import Component
from ebca.errors import BackendError, DeviceMemoryError

_OPTIONS_VARIABLE = "EBCA_ORT_CUDA_OPTIONS"

PROVIDER_OPTIONS: Mapping[str, str] = {
    # Convolutions of ONNX Runtime are a quarter faster with channels last.
    "prefer_nhwc": "1",
    # Grow by the requested size only: doubling would reserve gigabytes for the largest layer.
    "arena_extend_strategy": "kSameAsRequested",
    # The search for the fastest convolution would reserve as much as the slowest candidate needs, and gains nothing.
    "cudnn_conv_use_max_workspace": "0",
    "enable_cuda_graph": "0",
}
SESSION_OPTIONS: Mapping[str, str] = {
    "session.record_ep_graph_assignment_info": "1",
    # Weights stay out of the arena: it never gives memory back, and graphs use what is free in it as scratch.
    "session.use_device_allocator_for_initializers": "1",
}

# Shape arithmetic runs on the host. None of these operators belongs to it: on the host, each would copy its tensors
# from the GPU and back.
_GPU_OPERATORS = (
    frozenset(("Conv", "Gemm", "MatMul", "Attention", "MultiHeadAttention", "LayerNormalization"))
    | frozenset(("SkipLayerNormalization", "GroupNorm", "SkipGroupNorm", "BiasSplitGelu", "InstanceNormalization"))
    | frozenset(("GroupNormalization", "Softmax", "Sigmoid", "Gelu", "Erf", "Resize", "ReduceMean", "Sqrt", "Sin"))
    | frozenset(("Cos", "Transpose"))
)

# Of ONNX Runtime's log; the second is its default.
_ERRORS, _WARNINGS = 3, 2

# The backend whose sessions use a GPU's shared arena. ONNX Runtime has one arena per process and GPU, and what one
# session frees, the next one uses at once: right on one stream, and a race between two.
_arena_users: dict[int, "weakref.ref[OnnxRuntimeCudaBackend]"] = {}


@cache
def _register_shared_arena(index: int) -> None:
    memory = ort.OrtMemoryInfo("Cuda", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, index, ort.OrtMemType.DEFAULT)
    # Strategy 1 is kSameAsRequested.
    arena = ort.OrtArenaCfg({"arena_extend_strategy": 1})
    ort.create_and_register_allocator_v2(PROVIDER, memory, {"device_id": str(index)}, arena)


def create(target: GpuTarget) -> "OnnxRuntimeCudaBackend":
    """Provider options in EBCA_ORT_CUDA_OPTIONS ("name=value,name=value") replace those above, for measuring.

    Raises:
        BackendError: this ONNX Runtime has no CUDA provider, or the variable has another form.
    """
    return OnnxRuntimeCudaBackend(target.stream, target.index, _options_of(os.environ.get(_OPTIONS_VARIABLE, "")))


def _options_of(text: str) -> dict[str, str]:
    options = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise BackendError(f"{_OPTIONS_VARIABLE} has '{item}'", "write name=value,name=value")
        options[name.strip()] = value.strip()
    return options


class OnnxRuntimeCudaBackend(Backend):
    """See the module docstring. Nothing is prepared: ONNX Runtime optimises a graph for a GPU in 10 ms.

    Args:
        stream: handle of the CUDA stream to enqueue on.
        index: number of the GPU.
        options: provider options that replace PROVIDER_OPTIONS.

    Raises:
        BackendError: this ONNX Runtime has no CUDA provider.
    """

    name = "onnxruntime-cuda"
    fixes_shapes = True
    stays_open = True
    shares_scratch = True

    def __init__(self, stream: int, index: int = 0, options: Mapping[str, str] | None = None) -> None:
        if PROVIDER not in ort.get_available_providers():
            raise BackendError(
                f"onnxruntime {ort.__version__} is built without CUDA",
                "run `pip uninstall onnxruntime` and `pip install onnxruntime-gpu`",
            )
        preload()
        self._index = index
        self._provider = {
            **PROVIDER_OPTIONS,
            **(options or {}),
            "device_id": str(index),
            "user_compute_stream": str(stream),
        }
        user = _arena_users.get(index)
        self._shares_arena = user is None or user() is None
        if self._shares_arena:
            _register_shared_arena(index)
            _arena_users[index] = weakref.ref(self)

    def identity(self) -> dict[str, str]:
        return {"onnxruntime-cuda": ort.__version__}

    def open(
        self, graph: Path, component: Component, dimensions: Mapping[str, int] | None = None
    ) -> "OnnxRuntimeCudaRunner":
        """Open a graph of the engine directory.

        Raises:
            BackendError: it cannot be opened, or parts of it would run on the CPU.
            DeviceMemoryError: the GPU has too little memory left.
        """
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS
        # A memory pattern is allocated at the second run of a shape, which may be inside a capture.
        options.enable_mem_pattern = False
        for key, value in SESSION_OPTIONS.items():
            options.add_session_config_entry(key, value)
        if self._shares_arena:
            options.add_session_config_entry("session.use_env_allocators", "1")
        for name, size in (dimensions or {}).items():
            options.add_free_dimension_override_by_name(name, size)
        # Each session would warn that the provider is no plugin.
        ort.set_default_logger_severity(_ERRORS)
        try:
            session = ort.InferenceSession(str(graph), options, providers=[(PROVIDER, self._provider)])
        except Exception as error:
            raise _opening_error(graph, error) from None
        finally:
            ort.set_default_logger_severity(_WARNINGS)
        # A provider that cannot start leaves a session that silently runs on the CPU.
        session.disable_fallback()
        if PROVIDER not in session.get_providers():
            raise BackendError(
                f"onnxruntime {ort.__version__} runs '{graph.name}' on {', '.join(session.get_providers())} instead of "
                "the GPU",
                'its CUDA libraries are missing, run `pip install "onnxruntime-gpu[cuda,cudnn]"`',
            )
        if stray := host_operators(session.get_provider_graph_assignment_info()):
            raise BackendError(
                f"onnxruntime {ort.__version__} has no CUDA kernel for {', '.join(stray)} in '{graph.name}' and would "
                "run them on the CPU",
                "export the engine again with --backend onnxruntime-cuda",
            )
        asynchronous = ort.RunOptions()
        asynchronous.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return OnnxRuntimeCudaRunner(self, session, self._index, asynchronous)


class OnnxRuntimeCudaRunner(OnnxRuntimeRunner):
    """An opened session on a GPU."""

    def __init__(self, backend: OnnxRuntimeCudaBackend, session: Any, index: int, run_options: Any) -> None:
        super().__init__(session, "cuda", index, run_options)
        # While sessions use the shared arena, no other backend may.
        self._backend = backend

    def _memory_error(self, error: Exception) -> Exception:
        return _no_memory("run", error)


def _opening_error(graph: Path, error: Exception) -> BackendError | DeviceMemoryError:
    if is_out_of_memory(error):
        return _no_memory(f"open '{graph.name}'", error)
    line = str(error).strip().splitlines()[0]
    return BackendError(f"onnxruntime {ort.__version__} cannot open '{graph}' on the GPU: {line}")


def _no_memory(task: str, error: Exception) -> DeviceMemoryError:
    line = str(error).strip().splitlines()[0]
    return DeviceMemoryError(
        f"the GPU has too little memory left to {task}: {line}", "make a smaller image, or fewer at once"
    )


def host_operators(assignment: Any) -> list[str]:
    """Operators that would run on the CPU but belong on the GPU, sorted.

    assignment: the result of `InferenceSession.get_provider_graph_assignment_info`.
    """
    return sorted(
        {
            node.op_type
            for part in assignment
            if part.ep_name != PROVIDER
            for node in part.get_nodes()
            if node.op_type in _GPU_OPERATORS
        }
    )
