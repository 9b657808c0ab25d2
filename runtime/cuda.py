"""CUDA: memory of a GPU, and steps that are replayed as one CUDA graph.

The host works on pinned copies of the arrays it reads and writes. A recorded step holds, in one graph, the copies to
the GPU, everything that engines and kernels enqueue, and the copies back; so a value that changes from step to step is
never part of the recording, and a step is one launch.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ebca.engines.backend import Call
from ebca.engines.memory import address, nbytes
from ebca.errors import BackendError
from ebca.runtime.devices import Shared

log = logging.getLogger(__name__)


class Driver(Protocol):
    """What a device needs of the CUDA driver. Everything that takes time is enqueued on one stream.

    `ebca.runtime.driver.CudaDriver` is the real one.
    """

    name: str

    def allocate(self, nbytes: int) -> int:
        """Address of zeroed device memory. Raises MemoryError."""
        ...

    def free(self, pointer: int) -> None:
        """Give memory of `allocate` back."""
        ...

    def allocate_host(self, nbytes: int) -> np.ndarray:
        """Pinned host memory, zeroed uint8 [nbytes]; freed with the array."""
        ...

    def view(self, pointer: int, shape: Sequence[int], dtype: Any, owner: object) -> Any:
        """Device memory as engines bind it."""
        ...

    def copy_in(self, pointer: int, source: np.ndarray) -> None:
        """Enqueue a copy from pinned memory to the device."""
        ...

    def copy_out(self, target: np.ndarray, pointer: int) -> None:
        """Enqueue a copy from the device to pinned memory."""
        ...

    def submit(self, call: Call) -> None:
        """Let a call enqueue its work."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """A graph of what `enqueue` enqueues, which does not run now. Raises BackendError where that cannot be."""
        ...

    def launch(self, graph: Any) -> None:
        """Enqueue a graph."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was enqueued. Raises BackendError for an error on the device."""
        ...


class CudaMemory:
    """Memory of a GPU."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self._driver = driver
        self.nbytes = nbytes
        self.pointer = driver.allocate(max(nbytes, 1))
        # At the end of the process the driver frees everything itself.
        weakref.finalize(self, driver.free, self.pointer).atexit = False

    def view(self, offset: int, shape: Sequence[int], dtype: Any) -> Any:
        return self._driver.view(self.pointer + offset, tuple(shape), np.dtype(dtype), self)


class CudaDevice:
    """See the module's text. Sessions of several threads share the stream, one graph after the other."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.name = driver.name
        self._lock = threading.RLock()

    def allocate(self, nbytes: int) -> CudaMemory:
        with self._lock:
            return CudaMemory(self.driver, nbytes)

    def share(self, array: Any) -> Shared:
        with self._lock:
            mirror = self.driver.allocate_host(nbytes(array.shape, array.dtype))
        return Shared(array, mirror.view(array.dtype).reshape(array.shape))

    def upload(self, arrays: Sequence[Shared]) -> None:
        with self._lock:
            self._copy_in(arrays)

    def download(self, arrays: Sequence[Shared]) -> None:
        with self._lock:
            self._copy_out(arrays)
            self.driver.synchronize()

    def run(self, call: Call) -> None:
        with self._lock:
            self.driver.submit(call)

    def _copy_in(self, arrays: Sequence[Shared]) -> None:
        for shared in arrays:
            self.driver.copy_in(address(shared.array), shared.host)

    def _copy_out(self, arrays: Sequence[Shared]) -> None:
        for shared in arrays:
            self.driver.copy_out(shared.host, address(shared.array))

    def record(self, calls: Sequence[Call], reads: Sequence[Shared] = (), writes: Sequence[Shared] = ()) -> Call:
        driver, lock = self.driver, self._lock

        def enqueue() -> None:
            self._copy_in(reads)
            for call in calls:
                driver.submit(call)
            self._copy_out(writes)

        with lock:
            # Engines allocate and choose algorithms when they run first, which a capture must not see.
            enqueue()
            driver.synchronize()
            try:
                graph = driver.capture(enqueue)
            except BackendError as error:
                log.warning("this step runs without a CUDA graph, call by call: %s", error)
                graph = None

        def replay() -> None:
            with lock:
                if graph is None:
                    enqueue()
                else:
                    driver.launch(graph)
                driver.synchronize()

        return replay
