"""Where buffers live and how a step is replayed.

A device allocates memory and turns a list of bound calls into something that runs them again and again. On the CPU that
is the list itself; on CUDA it is a graph (`ebca.runtime.devices.cuda`).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ebca.engines.backends.protocol import Arrays, Backend, BackendOptions, Call, Runner
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.contract.manifest import LayerSpec

ALIGNMENT = 256
"""Bytes: what TensorRT wants of every tensor; more than a cache line or a vector load needs."""


class Memory(Protocol):
    """Zeroed memory of a device, aligned to ALIGNMENT; lives as long as it or a view of it."""

    nbytes: int

    def view(self, offset: int, shape: Sequence[int], dtype: Any) -> Any:
        """A C-contiguous array at `offset` bytes, for engines to bind: numpy's on the CPU, a DeviceArray elsewhere."""
        ...


@dataclass(frozen=True, eq=False)
class MirroredBuffer:
    """An array of a device, and the host's side of it: the same memory on the CPU, a copy elsewhere."""

    array: Any
    host: np.ndarray


class Recording(Protocol):
    """Work on a device that is enqueued by calling this, which waits for nothing."""

    def __call__(self) -> None: ...


class GraphDevice(Protocol):
    """A device that replays recorded work without the host."""

    def allocate(self, nbytes: int) -> Memory:
        """See `Device`."""
        ...

    def share(self, array: Any) -> MirroredBuffer:
        """See `Device`."""
        ...

    def upload(self, arrays: Sequence[MirroredBuffer]) -> None:
        """See `Device`."""
        ...

    def download(self, arrays: Sequence[MirroredBuffer]) -> None:
        """See `Device`."""
        ...

    def used_bytes(self) -> int:
        """Device memory taken since this device was opened, by anything."""
        ...

    def sampling(self, kernel: str, arrays: Arrays) -> Call:
        """One of `ebca.plugins.sampling.KERNELS`, bound to its arrays."""
        ...

    def graph(self, calls: Sequence[Call], warm: Sequence[Call]) -> Recording:
        """One launch of all of `calls`. Those in `warm` run once before they are recorded."""
        ...

    def chain(self, recordings: Sequence[Any]) -> Recording:
        """One launch of several recordings of this device, one after the other."""
        ...


class Device(Protocol):
    """One kind of memory and execution."""

    name: str

    def description(self) -> str:
        """The hardware: model of the processor, or name of the GPU."""
        ...

    @property
    def graphs(self) -> GraphDevice | None:
        """What samples without the host between the steps; None if the host is the device."""
        ...

    def backend(self, name: str | None, directory: EngineDirectory, options: BackendOptions) -> Backend:
        """The named backend for this device, or None for the default one.

        Raises:
            BackendError, ParameterError: see `ebca.engines.backends.registry`.
        """
        ...

    def allocate(self, nbytes: int) -> Memory:
        """Raises MemoryError."""
        ...

    def share(self, array: Any) -> MirroredBuffer:
        """Let the host read and write an array of this device."""
        ...

    def upload(self, arrays: Sequence[MirroredBuffer]) -> None:
        """Bring what the host wrote to the device."""
        ...

    def download(self, arrays: Sequence[MirroredBuffer]) -> None:
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

    def record(
        self, calls: Sequence[Call], reads: Sequence[MirroredBuffer] = (), writes: Sequence[MirroredBuffer] = ()
    ) -> Call:
        """One call that uploads `reads`, runs all of `calls` in order, and downloads `writes`."""
        ...

    def clock(self, calls: Sequence[Call]) -> Callable[[], list[float]]:
        """A function that runs all of `calls` in order and gives the seconds that each took on the device."""
        ...
