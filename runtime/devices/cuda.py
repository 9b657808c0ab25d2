"""CUDA: memory of a GPU, and steps that are replayed as one CUDA graph.

The host works on pinned copies of the arrays it reads and writes. A recorded step holds, in one graph, the copies to
the GPU, everything that engines and kernels enqueue, and the copies back; so a value that changes from step to step is
never part of the recording, and a step is one launch.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from ebca.engines.backends import registry
from ebca.engines.backends.protocol import Arrays, Backend, BackendOptions, Call, Runner
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.contract.manifest import LayerSpec
from ebca.engines.machine import nvidia
from ebca.engines.machine.memory import address, nbytes
from ebca.errors import BackendError, ParameterError
from ebca.runtime.devices.device import GraphDevice, MirroredBuffer

log = logging.getLogger(__name__)


class Driver(Protocol):
    """What a device needs of the CUDA driver. Everything that takes time is enqueued on one stream.

    `ebca.runtime.devices.driver.CudaDriver` is the real one.
    """

    name: str
    index: int
    stream: int

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

    def enter(self) -> None:
        """Make the device's context the one of the calling thread."""
        ...

    def submit(self, call: Call) -> None:
        """Let a call enqueue its work."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """A graph of what `enqueue` enqueues, which does not run now. Raises BackendError where that cannot be."""
        ...

    def chain(self, graphs: Sequence[Any]) -> Any:
        """One graph of several, one after the other. Raises BackendError where that cannot be."""
        ...

    def launch_graph(self, graph: Any) -> None:
        """Enqueue a graph."""
        ...

    def mark(self) -> Any:
        """Enqueue a mark for `seconds`."""
        ...

    def seconds(self, first: Any, second: Any) -> float:
        """Between two marks that the device has passed."""
        ...

    def free_bytes(self) -> int:
        """Memory of the device that nobody uses."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was enqueued. Raises BackendError for an error on the device."""
        ...


class Kernels(Protocol):
    """Our own kernels on a device."""

    def operator(self, variant: str, layer: LayerSpec, dtype: np.dtype[Any]) -> Runner | None:
        """Energy cross attention for q, k, v of that dtype; None where there is no kernel for it."""
        ...

    def sampling(self, kernel: str, arrays: Arrays) -> Call:
        """One of `ebca.plugins.sampling.KERNELS`, bound to its arrays."""
        ...

    def register(self, trt: Any, registry: Any) -> object:
        """Let TensorRT find energy cross attention, see `ebca.engines.backends.protocol.Register`."""
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

    def __init__(self, driver: Driver, kernels: Kernels) -> None:
        self.driver = driver
        self.kernels = kernels
        self.name = driver.name
        self._lock = threading.RLock()
        self._free_at_first = driver.free_bytes()

    def description(self) -> str:
        return nvidia.find().gpus[self.driver.index].name

    @property
    def graphs(self) -> GraphDevice | None:
        return self

    def backend(self, name: str | None, directory: EngineDirectory, options: BackendOptions) -> Backend:
        index, stream = self.driver.index, self.driver.stream
        gpu = nvidia.find().gpus[index]
        return registry.create_on_gpu(name, directory, options, gpu, index, stream, self.kernels.register)

    def used_bytes(self) -> int:
        """Device memory taken since this device was made, by whatever took it."""
        with self._lock:
            return self._free_at_first - self.driver.free_bytes()

    def allocate(self, nbytes: int) -> CudaMemory:
        with self._lock:
            try:
                return CudaMemory(self.driver, nbytes)
            except MemoryError:
                raise ParameterError(
                    f"the GPU has no {nbytes / 1e6:.0f} MB left", "make a smaller picture or fewer at once"
                ) from None

    def share(self, array: Any) -> MirroredBuffer:
        with self._lock:
            mirror = self.driver.allocate_host(nbytes(array.shape, array.dtype))
        return MirroredBuffer(array, mirror.view(array.dtype).reshape(array.shape))

    def upload(self, arrays: Sequence[MirroredBuffer]) -> None:
        with self._lock:
            self._copy_in(arrays)

    def download(self, arrays: Sequence[MirroredBuffer]) -> None:
        with self._lock:
            self._copy_out(arrays)
            self.driver.synchronize()

    def operator(self, variant: str, layer: LayerSpec, dtype: np.dtype[Any]) -> Runner | None:
        return self.kernels.operator(variant, layer, dtype)

    def sampling(self, kernel: str, arrays: Arrays) -> Call:
        return self.kernels.sampling(kernel, arrays)

    @contextmanager
    def ready(self) -> Iterator[None]:
        with self._lock:
            self.driver.enter()
            yield

    def run(self, call: Call) -> None:
        with self._lock:
            self.driver.submit(call)

    def _copy_in(self, arrays: Sequence[MirroredBuffer]) -> None:
        for shared in arrays:
            self.driver.copy_in(address(shared.array), shared.host)

    def _copy_out(self, arrays: Sequence[MirroredBuffer]) -> None:
        for shared in arrays:
            self.driver.copy_out(shared.host, address(shared.array))

    def record(
        self, calls: Sequence[Call], reads: Sequence[MirroredBuffer] = (), writes: Sequence[MirroredBuffer] = ()
    ) -> Call:
        def enqueue() -> None:
            self._copy_in(reads)
            self._submit(calls)
            self._copy_out(writes)

        with self._lock:
            # Engines allocate and choose algorithms when they run first, which a capture must not see.
            enqueue()
            self.driver.synchronize()
            recording = self._capture(enqueue)

        def replay() -> None:
            with self._lock:
                recording()
                self.driver.synchronize()

        return replay

    def graph(self, calls: Sequence[Call], warm: Sequence[Call]) -> "Recording":
        """One launch of all of `calls`. Those in `warm` run once before they are captured."""
        with self._lock:
            self._submit(warm)
            self.driver.synchronize()
            return self._capture(lambda: self._submit(calls))

    def chain(self, recordings: Sequence["Recording"]) -> "Recording":
        """One launch of several recordings, one after the other."""

        def enqueue() -> None:
            for recording in recordings:
                recording()

        graphs = [recording.graph for recording in recordings]
        with self._lock:
            # What could not be captured has said so.
            return Recording(self, None if None in graphs else self._or_none(self.driver.chain, graphs), enqueue)

    def clock(self, calls: Sequence[Call]) -> Callable[[], list[float]]:
        # Launched as graphs, even short calls follow one another without a gap that would count as theirs.
        recordings = [self.graph([call], warm=[call]) for call in calls]

        def timed() -> list[float]:
            with self._lock:
                marks = [self.driver.mark()]
                for recording in recordings:
                    recording()
                    marks.append(self.driver.mark())
                self.driver.synchronize()
                return [self.driver.seconds(first, second) for first, second in pairwise(marks)]

        return timed

    def _submit(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self.driver.submit(call)

    def _capture(self, enqueue: Call) -> "Recording":
        return Recording(self, self._or_none(self.driver.capture, enqueue), enqueue)

    def _or_none(self, make: Callable[[Any], Any], of: Any) -> Any:
        """What the driver makes, or a warning and None where it cannot."""
        try:
            return make(of)
        except BackendError as error:
            log.warning("this runs without a CUDA graph, call by call: %s", error)
            return None

    def launch(self, recording: "Recording") -> None:
        """Enqueue a recording."""
        with self._lock:
            if recording.graph is None:
                recording.enqueue()
            else:
                self.driver.launch_graph(recording.graph)


@dataclass(frozen=True, eq=False)
class Recording:
    """Work on a device that is enqueued by calling this, which waits for nothing.

    Attributes:
        graph: the driver's; None where the work cannot be captured, and is enqueued call by call.
        enqueue: what was recorded. It keeps alive the engines' memory that the graph works on.
    """

    device: CudaDevice
    graph: Any
    enqueue: Call

    def __call__(self) -> None:
        self.device.launch(self)
