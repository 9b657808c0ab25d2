"""ONNX Runtime's CUDA provider, for GPUs without TensorRT engines.

Everything is enqueued on the caller's stream and nothing waits for it, so that a whole step can be captured in one CUDA
graph from outside; ONNX Runtime's own graphs stay off, since they cannot be launched inside another capture. Written
against ONNX Runtime 1.31 and not run on a GPU yet.
"""

from pathlib import Path
from typing import Any

import onnxruntime as ort

from ebca.engines.backends.onnxruntime import OnnxRuntimeRunner
from ebca.engines.contract.manifest import Component
from ebca.errors import BackendError

PROVIDER = "CUDAExecutionProvider"

# Shapes are computed on the host. None of these is ever part of that, and on the host each would copy its tensors from
# the GPU and back.
_GPU_OPERATORS = frozenset(
    ("Conv", "Gemm", "MatMul", "Attention", "MultiHeadAttention", "LayerNormalization", "InstanceNormalization")
) | frozenset(("GroupNormalization", "Softmax", "Sigmoid", "Gelu", "Erf", "Resize", "ReduceMean", "Sqrt", "Sin", "Cos"))


class OnnxRuntimeCudaBackend:
    """See the module's text.

    Args:
        stream: handle of the CUDA stream to enqueue on.
        index: of the GPU.

    Raises:
        BackendError: this ONNX Runtime has no CUDA provider.
    """

    name = "onnxruntime-cuda"
    prepares = False

    def __init__(self, stream: int, index: int = 0) -> None:
        if PROVIDER not in ort.get_available_providers():
            raise BackendError(
                f"onnxruntime {ort.__version__} is built without CUDA",
                "run `pip uninstall onnxruntime` and `pip install onnxruntime-gpu`",
            )
        # Where CUDA and cuDNN come as Python packages, the system's loader does not find them by itself.
        preload = getattr(ort, "preload_dlls", None)
        if preload is not None:
            preload()
        self._index = index
        self._provider = {
            "device_id": str(index),
            "user_compute_stream": str(stream),
            # Doubling would reserve gigabytes for the largest layer.
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_use_max_workspace": "1",
            "enable_cuda_graph": "0",
        }

    def identity(self) -> dict[str, str]:
        return {"onnxruntime-cuda": ort.__version__}

    def prepare(self, graph: Path, target: Path) -> None:
        """Never called: ONNX Runtime optimises for a GPU only where there is one, and in seconds."""
        raise AssertionError(graph, target)

    def flush_caches(self) -> None:
        """Nothing to do."""

    def open(self, graph: Path, component: Component) -> OnnxRuntimeRunner:
        """Open a graph of the engine directory.

        Raises:
            BackendError: it cannot be opened, or some of it would run on the CPU.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # A pattern is allocated at the second run of a shape, which may be inside a capture.
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
    """Operators, sorted, that would run on the CPU though they belong on the GPU.

    assignment: of `InferenceSession.get_provider_graph_assignment_info`.
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
