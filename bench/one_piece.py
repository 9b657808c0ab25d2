"""The plain UNet as one graph, by the same path as the segments: trace, write, lower, prepare, open.

The yardstick of every backend: what the cuts and the energy update cost is the difference to this.
"""

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from diffusers import UNet2DConditionModel

from ebca.bench.subject import Subject
from ebca.engines.backends.tensorrt_library import LIBRARIES
from ebca.errors import ExportError, ParameterError
from ebca.export.graph.component import write_component
from ebca.export.graph.full_unet import full_unet_graph
from ebca.export.graph.half import to_half
from ebca.export.graph.op_node import OUTPUTS
from ebca.export.graph.traced_unet import TracedUNet
from ebca.export.quiet import quiet

_NAME = "unet"


class OnePiece:
    """The opened graph, bound to the subject's inputs. Owns a temporary folder; a context manager.

    Args:
        unet: float32, in eval mode.
        subject: whose backend, precision and inputs to use.

    Raises:
        ExportError: no room for the graph (twice the weights, in the folder for temporary files).
        ParameterError: TensorRT, and the engine directory has no uncut UNet.
    """

    def __init__(self, unet: UNet2DConditionModel, subject: Subject) -> None:
        backend, executor = subject.engine.backend, subject.executor
        self.noise = executor.noise
        stored = subject.engine.manifest.unet.full_unet
        if backend.name in LIBRARIES:
            if stored is None:
                raise ParameterError(
                    f"{backend.name} builds no engine here for one_piece", "export with --with-vanilla, or leave it out"
                )
            self._folder: Path | None = None
            self._call = executor.record_full_unet(subject.engine.runner(stored))
            return
        self._folder = Path(tempfile.mkdtemp(prefix="ebca-bench-"))
        try:
            _check_room(self._folder, 4 * sum(p.numel() for p in unet.parameters()))
            with quiet():
                whole = full_unet_graph(TracedUNet.of(unet))
                if subject.engine.manifest.compute == "fp16":
                    to_half(whole, float32_outputs=OUTPUTS)
                component = write_component(whole, self._folder, _NAME, half=False)
            graph = self._folder / component.graph_for(backend.name)
            if backend.prepares:
                target = self._folder / "prepared" / f"{_NAME}.onnx"
                target.parent.mkdir()
                backend.prepare(graph, target)
                graph = target
            self._call = executor.record_full_unet(backend.open(graph, component))
            if os.name == "posix":
                # Mapped files stay; a process that is killed then leaves nothing behind.
                self.close()
        except BaseException:
            self.close()
            raise

    def run(self) -> np.ndarray:
        """Noise prediction [B,C,h,w], a view that the next run overwrites."""
        self._call()
        return self.noise

    def close(self) -> None:
        """Delete the folder. Deleting twice is fine."""
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
            f"'{folder.parent}' has {free / 1e9:.1f} GB free, one_piece needs {wanted / 1e9:.1f} GB",
            "set TMPDIR to a folder with room, or leave one_piece out of --compare-with",
        )
