"""ONNX Runtime's CUDA provider, for GPUs without TensorRT plans.

Everything is enqueued on the caller's stream and nothing waits for it, so the caller can capture a whole step in one
CUDA graph. ONNX Runtime's own CUDA graphs stay off, since they cannot be launched inside another capture. Written
against ONNX Runtime 1.31 and not run on a GPU yet.
"""

from pathlib import Path
from typing import Any

import onnxruntime as ort

from ebca.engines.backends.gpu_target import GpuTarget
from ebca.engines.backends.onnxruntime import OnnxRuntimeRunner
from ebca.engines.backends.protocol import Backend
from ebca.engines.contract.manifest import Component
from ebca.errors import BackendError

PROVIDER = "CUDAExecutionProvider"

# Shape arithmetic runs on the host. None of these operators belongs to it: on the host, each would copy its tensors
# from the GPU and back.
_GPU_OPERATORS = frozenset(
    ("Conv", "Gemm", "MatMul", "Attention", "MultiHeadAttention", "LayerNormalization", "InstanceNormalization")
) | frozenset(("GroupNormalization", "Softmax", "Sigmoid", "Gelu", "Erf", "Resize", "ReduceMean", "Sqrt", "Sin", "Cos"))


def create(target: GpuTarget) -> "OnnxRuntimeCudaBackend":
    """Raises BackendError if this ONNX Runtime has no CUDA provider."""
    return OnnxRuntimeCudaBackend(target.stream, target.index)


class OnnxRuntimeCudaBackend(Backend):
    """See the module docstring. Nothing is prepared: ONNX Runtime optimises for a GPU in seconds, and only on one.

    Args:
        stream: handle of the CUDA stream to enqueue on.
        index: number of the GPU.

    Raises:
        BackendError: this ONNX Runtime has no CUDA provider.
    """

    name = "onnxruntime-cuda"

    def __init__(self, stream: int, index: int = 0) -> None:
        if PROVIDER not in ort.get_available_providers():
            raise BackendError(
                f"onnxruntime {ort.__version__} is built without CUDA",
                "run `pip uninstall onnxruntime` and `pip install onnxruntime-gpu`",
            )
        # The system's loader does not find CUDA and cuDNN installed as Python packages.
        preload = getattr(ort, "preload_dlls", None)
        if preload is not None:
            preload()
        self._index = index
        self._provider = {
            "device_id": str(index),
            "user_compute_stream": str(stream),
            # Grow by the requested size only: doubling would reserve gigabytes for the largest layer.
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_use_max_workspace": "1",
            "enable_cuda_graph": "0",
        }

    def identity(self) -> dict[str, str]:
        return {"onnxruntime-cuda": ort.__version__}

    def open(self, graph: Path, component: Component) -> OnnxRuntimeRunner:
        """Open a graph of the engine directory.

        Raises:
            BackendError: it cannot be opened, or parts of it would run on the CPU.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # A memory pattern is allocated at the second run of a shape, which may be inside a capture.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            session = ort.InferenceSession(str(graph), options, providers=[(PROVIDER, self._provider)])
        except Exception as error:
            line = str(error).strip().splitlines()[0]
            raise BackendError(f"onnxruntime {ort.__version__} cannot open '{graph}' on the GPU: {line}") from None
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
        return OnnxRuntimeRunner(session, "cuda", self._index, asynchronous)


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
