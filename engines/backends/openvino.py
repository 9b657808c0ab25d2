"""OpenVINO on the CPU: the backend with bfloat16.

`prepare` converts a graph to OpenVINO's own format, which opens several times faster than ONNX and maps its weights
from the file. Shapes stay symbolic. Weights are packed at the first inference, which therefore takes longer; the mapped
weights, as large as the packed ones, are then no longer needed and are dropped from memory.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ebca.engines.backends.protocol import Arrays, BackendOptions, Call, PreparingBackend
from ebca.engines.contract.manifest import Component
from ebca.engines.machine import mapped_files, processor
from ebca.errors import BackendError

# Older versions have no Attention operator, or (2026.2) open the graphs and silently produce wrong results.
_OLDEST = (2026, 3)

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def create(options: BackendOptions) -> "OpenVINOBackend":
    """Raises BackendError for an OpenVINO that is too old, or bf16 on a processor that lacks it."""
    return OpenVINOBackend(options)


class OpenVINOBackend(PreparingBackend):
    """See the module docstring.

    Raises:
        BackendError: this OpenVINO is too old, or the processor has no bfloat16.
    """

    name = "openvino"

    def __init__(self, options: BackendOptions) -> None:
        if tuple(int(n) for n in re.findall(r"\d+", ov.__version__)[:2]) < _OLDEST:
            raise BackendError(
                f"openvino {ov.__version__} is too old and may compute wrong results",
                f"run `pip install -U openvino`: {_OLDEST[0]}.{_OLDEST[1]} or newer will do, or backend onnxruntime",
            )
        self._core = ov.Core()
        if options.precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError("precision 'bf16' needs a processor with AVX512-BF16 or AMX", "use precision fp32")
        self._precision = options.precision
        self._threads = options.threads or processor.physical_cores()

    def identity(self) -> dict[str, str]:
        # The prepared form is portable; precision and threads apply when it is opened.
        return {"openvino": ov.__version__}

    def prepare(self, graph: Path, target: Path) -> None:
        try:
            model = self._core.read_model(graph)
        except RuntimeError as error:
            raise _unreadable(graph, error) from None
        try:
            ov.save_model(model, target.with_suffix(".xml"), compress_to_fp16=False)
        except RuntimeError as error:
            raise BackendError(
                f"openvino {ov.__version__} cannot write '{target.with_suffix('.xml')}': {error}", "check the disk"
            ) from None

    def open(
        self, prepared: Path, component: Component, dimensions: Mapping[str, int] | None = None
    ) -> "OpenVINORunner":
        precision = "fp32" if component.float32_only else self._precision
        config = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        path = prepared.with_suffix(".xml")
        try:
            model = self._core.compile_model(self._core.read_model(path), "CPU", config)
        except RuntimeError as error:
            raise _unreadable(path, error) from None
        return OpenVINORunner(model, path.with_suffix(".bin"))


class OpenVINORunner:
    """A compiled model. Each binding has its own request, so bindings of one runner may run in different threads."""

    def __init__(self, model: Any, weights: Path) -> None:
        self._model = model
        self._weights = weights

    def workspace_bytes(self, inputs: Arrays, outputs: Arrays) -> int:
        return 0

    def bind(self, inputs: Arrays, outputs: Arrays, workspace: int = 0, once: bool = False) -> Call:
        request = self._model.create_infer_request()
        read = {name for port in self._model.inputs for name in port.get_names()}
        for name, array in inputs.items():
            if name in read:
                request.set_tensor(name, _shared(array))
        for name, array in outputs.items():
            request.set_tensor(name, _shared(array))
        keep = (dict(inputs), dict(outputs))
        packed = False

        def call(_keep: object = keep) -> None:
            nonlocal packed
            # infer() would also inspect every output.
            try:
                request.start_async()
                request.wait()
            except RuntimeError as error:
                if "bad_alloc" in str(error) or "allocate" in str(error):
                    raise MemoryError(str(error).strip().splitlines()[-1]) from None
                raise
            if not packed:
                mapped_files.forget(self._weights)
                packed = True

        return call


def _shared(array: np.ndarray) -> Any:
    return ov.Tensor(array, shared_memory=True)


def _unreadable(path: Path, error: RuntimeError) -> BackendError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return BackendError(f"openvino {ov.__version__} cannot open '{path}': {lines[-1] if lines else error}")
