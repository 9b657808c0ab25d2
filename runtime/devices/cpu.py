"""The CPU as a device: host memory, and recordings that are lists of bound calls."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np

from ebca.engines.backends import registry
from ebca.engines.backends.protocol import Backend, BackendOptions, Call
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.contract.manifest import LayerSpec
from ebca.engines.machine import processor
from ebca.engines.machine.memory import nbytes
from ebca.runtime.devices.device import ALIGNMENT, MirroredBuffer


class CpuMemory:
    """Host memory."""

    def __init__(self, nbytes: int) -> None:
        raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        self._bytes = raw[start : start + nbytes]
        self.nbytes = nbytes

    def view(self, offset: int, shape: Sequence[int], dtype: Any) -> np.ndarray:
        return self._bytes[offset : offset + nbytes(shape, dtype)].view(dtype).reshape(shape)


class CpuDevice:
    """Host memory. A recording is a list of bound calls."""

    name = "cpu"
    graphs = None

    def description(self) -> str:
        return processor.model_name()

    def backend(self, name: str | None, directory: EngineDirectory, options: BackendOptions) -> Backend:
        return registry.create(name, options)

    def room(self) -> None:
        return None

    def allocate(self, nbytes: int) -> CpuMemory:
        return CpuMemory(nbytes)

    def share(self, array: np.ndarray) -> MirroredBuffer:
        return MirroredBuffer(array, array)

    def upload(self, arrays: Sequence[MirroredBuffer]) -> None:
        """Nothing to do."""

    def download(self, arrays: Sequence[MirroredBuffer]) -> None:
        """Nothing to do."""

    def operator(self, variant: str, layer: LayerSpec, dtype: np.dtype[Any]) -> None:
        return None

    def ready(self) -> AbstractContextManager[object]:
        return nullcontext()

    def run(self, call: Call) -> None:
        call()

    def invalidate(self) -> None:
        """Nothing to do: a recording is a list of calls."""

    def record(
        self, calls: Sequence[Call], reads: Sequence[MirroredBuffer] = (), writes: Sequence[MirroredBuffer] = ()
    ) -> Call:
        recorded = tuple(calls)

        def replay() -> None:
            for call in recorded:
                call()

        return replay

    def clock(self, calls: Sequence[Call]) -> Callable[[], list[float]]:
        recorded = tuple(calls)

        def timed() -> list[float]:
            marks = [time.perf_counter()]
            for call in recorded:
                call()
                marks.append(time.perf_counter())
            return [after - before for before, after in pairwise(marks)]

        return timed
