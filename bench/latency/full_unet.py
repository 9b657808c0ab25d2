"""The full UNet as one graph, made the same way as the segments: trace, write, lower, prepare, open.

The yardstick of every backend: the difference to it is what splitting the UNet and the energy update cost.
"""

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from diffusers import UNet2DConditionModel

from ebca.bench.latency.subject import FULL_UNET, Subject
from ebca.engines.backends.protocol import PreparingBackend
from ebca.engines.backends.tensorrt_library import LIBRARIES
from ebca.engines.contract import dims
from ebca.errors import ExportError, ParameterError
from ebca.export.graph.component import write_component
from ebca.export.graph.full_unet import full_unet_graph
from ebca.export.graph.half import to_half
from ebca.export.graph.op_node import OUTPUTS
from ebca.export.graph.traced_unet import TracedUNet
from ebca.export.quiet import quiet

_NAME = "unet"


class FullUNet:
    """The opened graph, bound to the subject's inputs. Owns a temporary folder; a context manager.

    Args:
        unet: float32, in eval mode.
        subject: whose backend, precision and inputs to use.

    Raises:
        ExportError: no room for the graph (twice the weights, in the folder for temporary files).
        ParameterError: the backend is TensorRT, and the engine directory has no full UNet.
    """

    def __init__(self, unet: UNet2DConditionModel, subject: Subject) -> None:
        backend, executor = subject.engine.backend, subject.executor
        self.noise = executor.noise
        stored = subject.engine.manifest.unet.full_unet
        if backend.name in LIBRARIES:
            if stored is None:
                raise ParameterError(
                    f"{backend.name} cannot build {FULL_UNET} here", "export with --with-full-unet, or leave it out"
                )
            self._folder: Path | None = None
            self._call = executor.record_full_unet(subject.engine.runner(stored, executor.sizes))
            return
        self._folder = Path(tempfile.mkdtemp(prefix="ebca-bench-"))
        try:
            _check_room(self._folder, 4 * sum(p.numel() for p in unet.parameters()))
            with quiet():
                full = full_unet_graph(TracedUNet.of(unet))
                if subject.engine.manifest.compute == "fp16":
                    to_half(full, float32_outputs=OUTPUTS)
                component = write_component(full, self._folder, _NAME, half=False)
            graph = self._folder / component.graph_for(backend.name)
            if isinstance(backend, PreparingBackend):
                target = self._folder / "prepared" / f"{_NAME}.onnx"
                target.parent.mkdir()
                backend.prepare(graph, target)
                graph = target
            shapes = [tensor.shape for tensor in (*component.inputs.values(), *component.outputs.values())]
            runner = backend.open(graph, component, dims.fixed(shapes, executor.sizes))
            self._call = executor.record_full_unet(runner)
            if os.name == "posix":
                # Mapped files stay usable, and a process that is killed leaves nothing behind.
                self.close()
        except BaseException:
            self.close()
            raise

    def run(self) -> np.ndarray:
        """Noise prediction [B,C,h,w], a view that the next run overwrites."""
        self._call()
        return self.noise

    def close(self) -> None:
        """Delete the folder. May be called twice."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_room(folder: Path, weights: int) -> None:
    free, wanted = shutil.disk_usage(folder).free, int(2.2 * weights) + (64 << 20)
    if free < wanted:
        raise ExportError(
            f"'{folder.parent}' has {free / 1e9:.1f} GB free, {FULL_UNET} needs {wanted / 1e9:.1f} GB",
            f"set TMPDIR to a folder with room, or leave {FULL_UNET} out of --compare-with",
        )
