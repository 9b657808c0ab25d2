"""Where buffers live and how a step is replayed.

A device allocates memory and turns a list of bound calls into something that runs them again and again. On the CPU that
is the list itself; on CUDA it is a graph (`ebca.runtime.cuda`).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from ebca.engines.backend import Call, Runner
from ebca.engines.manifest import LayerSpec
from ebca.engines.memory import nbytes
from ebca.errors import ParameterError

ALIGNMENT = 256
"""Bytes: what TensorRT wants of every tensor; more than a cache line or a vector load needs."""

DEVICES = ("cpu", "cuda")


class Memory(Protocol):
    """Zeroed memory of a device, aligned to ALIGNMENT; lives as long as it or a view of it."""

    nbytes: int

    def view(self, offset: int, shape: Sequence[int], dtype: Any) -> Any:
        """A C-contiguous array at `offset` bytes, for engines to bind: numpy's on the CPU, a DeviceArray elsewhere."""
        ...


@dataclass(frozen=True, eq=False)
class Shared:
    """An array of a device, and the host's side of it: the same memory on the CPU, a copy elsewhere."""

    array: Any
    host: np.ndarray


class Device(Protocol):
    """One kind of memory and execution."""

    name: str

    def allocate(self, nbytes: int) -> Memory:
        """Raises MemoryError."""
        ...

    def share(self, array: Any) -> Shared:
        """Let the host read and write an array of this device."""
        ...

    def upload(self, arrays: Sequence[Shared]) -> None:
        """Bring what the host wrote to the device."""
        ...

    def download(self, arrays: Sequence[Shared]) -> None:
        """Wait for the device, and let the host see its arrays."""
        ...

    def operator(self, variant: str, layer: LayerSpec, dtype: np.dtype[Any]) -> Runner | None:
        """This device's own kernel for the op between segments; None: the engine runs its graph."""
        ...

    def ready(self) -> AbstractContextManager[object]:
        """Hold while engines are opened and bound: nothing else uses the device meanwhile."""
        ...

    def run(self, call: Call) -> None:
        """Run a bound call once, by itself."""
        ...

    def record(self, calls: Sequence[Call], reads: Sequence[Shared] = (), writes: Sequence[Shared] = ()) -> Call:
        """One call that uploads `reads`, runs all of `calls` in order, and downloads `writes`."""
        ...

    def clock(self, calls: Sequence[Call]) -> Callable[[], list[float]]:
        """A function that runs all of `calls` in order and gives the seconds that each took on the device."""
        ...


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
    """Host memory; a recorded step is a list of bound calls."""

    name = "cpu"

    def allocate(self, nbytes: int) -> CpuMemory:
        return CpuMemory(nbytes)

    def share(self, array: np.ndarray) -> Shared:
        return Shared(array, array)

    def upload(self, arrays: Sequence[Shared]) -> None:
        """Nothing to do."""

    def download(self, arrays: Sequence[Shared]) -> None:
        """Nothing to do."""

    def operator(self, variant: str, layer: LayerSpec, dtype: np.dtype[Any]) -> None:
        return None

    def ready(self) -> AbstractContextManager[object]:
        return nullcontext()

    def run(self, call: Call) -> None:
        call()

    def record(self, calls: Sequence[Call], reads: Sequence[Shared] = (), writes: Sequence[Shared] = ()) -> Call:
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


def parse(name: str) -> tuple[str, int]:
    """Kind and index of a device's name: ("cuda", 1) for "cuda:1". Raises ParameterError for a name that is none."""
    kind, colon, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (bool(colon) and not index.isdecimal())):
        raise ParameterError(f"device '{name}' is unknown", f"choose one of {', '.join(DEVICES)}, or cuda:1 and so on")
    return kind, int(index or 0)


def create(name: str) -> Device:
    """The named device: "cpu", "cuda" (the first GPU) or "cuda:1".

    Raises:
        ParameterError: there is no such device.
        BackendError: it cannot be used on this machine; the message says why.
    """
    kind, index = parse(name)
    if kind == "cpu":
        return CpuDevice()
    from ebca.runtime.cuda import CudaDevice
    from ebca.runtime.driver import CudaDriver
    from ebca.runtime.kernels import CudaKernels

    driver = CudaDriver(index)
    return CudaDevice(driver, CudaKernels(driver))
