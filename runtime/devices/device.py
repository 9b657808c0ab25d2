"""The interface of devices.

A device allocates memory, and records a list of bound calls to run them many times. On the CPU a recording is the list
itself; on CUDA it is a graph (`ebca.runtime.devices.cuda`).
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
"""In bytes. TensorRT requires it of every tensor; cache lines and vector loads need less."""


class Memory(Protocol):
    """Zeroed device memory, aligned to ALIGNMENT. It is freed when neither it nor a view of it is referenced."""

    nbytes: int

    def view(self, offset: int, shape: Sequence[int], dtype: Any) -> Any:
        """A C-contiguous array at `offset` bytes that runners can bind: numpy on the CPU, else a DeviceArray."""
        ...


@dataclass(frozen=True, eq=False)
class MirroredBuffer:
    """A device array and its host side: the same memory on the CPU, a pinned copy on a GPU."""

    array: Any
    host: np.ndarray


class Recording(Protocol):
    """Recorded work. Calling it enqueues the work without waiting for it."""

    def __call__(self) -> None: ...


class GraphDevice(Protocol):
    """A device that runs several evaluations without the host."""

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
        """Device memory allocated since this device was opened, by any process, in bytes."""
        ...

    def run(self, call: Call) -> None:
        """See `Device`."""
        ...

    def sampling(self, kernel: str, arrays: Arrays) -> Call:
        """One of `ebca.plugins.sampling.KERNELS`, or EMBED, bound to its arrays."""
        ...

    def exclude(self, arrays: Arrays, layer_stride: int) -> Call:
        """The kernel of `ebca.plugins.exclusive_attention`, bound to its arrays.

        Args:
            arrays: by the names in its TENSORS.
            layer_stride: elements from the maps of one layer to those of the next.
        """
        ...

    def graph(self, calls: Sequence[Call], warm: Sequence[Call]) -> Recording:
        """One launch of all of `calls`. Those in `warm` run once before they are recorded."""
        ...

    def chain(self, recordings: Sequence[Any]) -> Recording:
        """One launch of several recordings of this device, in order."""
        ...


class Device(Protocol):
    """One kind of memory and execution."""

    name: str

    def description(self) -> str:
        """The hardware: model of the processor, or name of the GPU."""
        ...

    @property
    def graphs(self) -> GraphDevice | None:
        """The interface for sampling without the host; None if the device has none."""
        ...

    def backend(self, name: str | None, directory: EngineDirectory, options: BackendOptions) -> Backend:
        """A backend for this device.

        Args:
            name: of the backend; None: the default.
            directory: the engine directory.
            options: precision and threads.

        Raises:
            BackendError, ParameterError: see `ebca.engines.backends.registry`.
        """
        ...

    def allocate(self, nbytes: int) -> Memory:
        """Zeroed memory. Raises MemoryError, or DeviceMemoryError on a GPU."""
        ...

    def room(self) -> int | None:
        """Bytes of its own memory that a call could have at most, with what this process holds there already; None: its
        memory is the host's."""
        ...

    def share(self, array: Any) -> MirroredBuffer:
        """Give the host access to a device array."""
        ...

    def upload(self, arrays: Sequence[MirroredBuffer]) -> None:
        """Copy the host side of buffers to the device."""
        ...

    def download(self, arrays: Sequence[MirroredBuffer]) -> None:
        """Wait for the device, and copy buffers to their host side."""
        ...

    def operator(self, variant: str, layer: LayerSpec, dtype: np.dtype[Any]) -> Runner | None:
        """The device's own kernel for the op between segments; None: the backend runs the op's graph."""
        ...

    def ready(self) -> AbstractContextManager[object]:
        """Hold this while opening and binding components; it keeps other threads from using the device."""
        ...

    def run(self, call: Call) -> None:
        """Run a single bound call."""
        ...

    def invalidate(self) -> None:
        """Wait for the device, and record everything again before its next use: memory that it uses as scratch may be
        given away. Call it with `ready`, before memory is taken for good."""
        ...

    def record(
        self, calls: Sequence[Call], reads: Sequence[MirroredBuffer] = (), writes: Sequence[MirroredBuffer] = ()
    ) -> Call:
        """One call that uploads `reads`, runs all of `calls` in order, and downloads `writes`."""
        ...

    def clock(self, calls: Sequence[Call]) -> Callable[[], list[float]]:
        """A function that runs all of `calls` in order and returns the seconds that each took on the device."""
        ...
