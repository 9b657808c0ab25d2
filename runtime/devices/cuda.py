"""CUDA: GPU memory, and evaluations that are replayed as one CUDA graph.

The host works on pinned copies of the arrays that it reads and writes. One graph contains the copies to the GPU, all
work that runners enqueue, and the copies back. Values that change between evaluations are therefore never part of the
recording, and an evaluation is one launch.
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
from ebca.errors import BackendError, DeviceMemoryError
from ebca.runtime.devices.device import GraphDevice, MirroredBuffer

log = logging.getLogger(__name__)

# In the first runs libraries allocate memory, choose algorithms and load kernels, which must not be captured.
_WARM_RUNS = 3


class Driver(Protocol):
    """The part of the CUDA driver that a device needs. All asynchronous work is enqueued on one stream.

    `ebca.runtime.devices.driver.CudaDriver` implements it.
    """

    name: str
    index: int
    stream: int

    def allocate(self, nbytes: int) -> int:
        """Address of zeroed device memory. Raises MemoryError."""
        ...

    def free(self, pointer: int) -> None:
        """Free memory of `allocate`."""
        ...

    def allocate_host(self, nbytes: int) -> np.ndarray:
        """Pinned host memory, zeroed uint8 [nbytes]; freed with the array."""
        ...

    def view(self, pointer: int, shape: Sequence[int], dtype: Any, owner: object) -> Any:
        """Device memory as an array that runners can bind; it keeps `owner` alive."""
        ...

    def copy_in(self, pointer: int, source: np.ndarray) -> None:
        """Enqueue a copy from pinned memory to the device."""
        ...

    def copy_out(self, target: np.ndarray, pointer: int) -> None:
        """Enqueue a copy from the device to pinned memory."""
        ...

    def enter(self) -> None:
        """Make the device's context current in the calling thread."""
        ...

    def submit(self, call: Call) -> None:
        """Run a call, which enqueues its work."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Capture what `enqueue` enqueues as a graph, without running it. Raises BackendError if that fails."""
        ...

    def chain(self, graphs: Sequence[Any]) -> Any:
        """One graph that runs several graphs in order. Raises BackendError if that fails."""
        ...

    def launch_graph(self, graph: Any) -> None:
        """Enqueue a graph."""
        ...

    def mark(self) -> Any:
        """Enqueue a time mark for `seconds`."""
        ...

    def seconds(self, first: Any, second: Any) -> float:
        """Seconds between two marks that the device has passed."""
        ...

    def free_bytes(self) -> int:
        """Free memory of the device, in bytes."""
        ...

    def synchronize(self) -> None:
        """Wait for all enqueued work. Raises BackendError for an error on the device."""
        ...


class Kernels(Protocol):
    """The kernels of this package on a device."""

    def operator(self, variant: str, layer: LayerSpec, dtype: np.dtype[Any]) -> Runner | None:
        """Energy cross attention for q, k, v of that dtype; None if no kernel supports it."""
        ...

    def sampling(self, kernel: str, arrays: Arrays) -> Call:
        """One of `ebca.plugins.sampling.KERNELS`, or EMBED, bound to its arrays."""
        ...

    def exclude(self, arrays: Arrays, layer_stride: int) -> Call:
        """The kernel of `ebca.plugins.exclusive_attention`, see `ebca.runtime.devices.device.GraphDevice`."""
        ...

    def register(self, trt: Any, registry: Any) -> object:
        """Register energy cross attention with TensorRT, see `ebca.engines.backends.protocol.Register`."""
        ...


class CudaMemory:
    """Zeroed GPU memory, freed with the object."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self._driver = driver
        self.nbytes = nbytes
        self.pointer = driver.allocate(max(nbytes, 1))
        # At process exit the driver frees all memory, possibly before finalizers run.
        weakref.finalize(self, driver.free, self.pointer).atexit = False

    def view(self, offset: int, shape: Sequence[int], dtype: Any) -> Any:
        return self._driver.view(self.pointer + offset, tuple(shape), np.dtype(dtype), self)


class CudaDevice:
    """A GPU. Sessions of several threads share one stream, which runs one graph at a time."""

    def __init__(self, driver: Driver, kernels: Kernels) -> None:
        self.driver = driver
        self.kernels = kernels
        self.name = driver.name
        self._lock = threading.RLock()
        self._state = object()
        self._free_at_first = driver.free_bytes()
        self._told: set[str] = set()

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
        """Device memory allocated since this device was opened, by any process, in bytes."""
        with self._lock:
            return self._free_at_first - self.driver.free_bytes()

    def room(self) -> int:
        with self._lock:
            return max(self._free_at_first, self.driver.free_bytes())

    def allocate(self, nbytes: int) -> CudaMemory:
        with self._lock:
            try:
                return CudaMemory(self.driver, nbytes)
            except MemoryError:
                raise DeviceMemoryError(
                    f"the GPU has no {nbytes / 1e6:.0f} MB left",
                    "make a smaller image, or fewer at once",
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

    def exclude(self, arrays: Arrays, layer_stride: int) -> Call:
        return self.kernels.exclude(arrays, layer_stride)

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

        recording = self._recorded(enqueue, warm=enqueue)

        def replay() -> None:
            with self._lock:
                recording()
                self.driver.synchronize()

        return replay

    def graph(self, calls: Sequence[Call], warm: Sequence[Call]) -> "Recording":
        """One launch of all of `calls`. Those in `warm` run a few times before they are captured."""
        return self._recorded(lambda: self._submit(calls), warm=lambda: self._submit(warm))

    def chain(self, recordings: Sequence["Recording"]) -> "Recording":
        """One launch of several recordings, in order."""

        def enqueue() -> None:
            for recording in recordings:
                recording()

        def make() -> Any:
            for recording in recordings:
                self._refresh(recording)
            graphs = [recording.graph for recording in recordings]
            if None in graphs:
                return None  # It has logged its warning already.
            try:
                return self.driver.chain(graphs)
            except BackendError as error:
                # cuBLAS allocates memory inside a graph for some products, and no such graph can be part of another.
                # Launched one after the other they take as long; captured as one, they took three times as long.
                log.info("the evaluations of a run are launched one by one, because graphs cannot be joined: %s", error)
                return None

        return self._refresh(Recording(self, enqueue, make))

    def invalidate(self) -> None:
        with self._lock:
            self.driver.synchronize()
            self._state = object()

    def _recorded(self, enqueue: Call, warm: Call) -> "Recording":
        def make() -> Any:
            for _ in range(_WARM_RUNS):
                warm()
            self.driver.synchronize()
            return self._or_none(self.driver.capture, enqueue)

        return self._refresh(Recording(self, enqueue, make))

    def _refresh(self, recording: "Recording") -> "Recording":
        """Capture a recording, unless its graph is up to date."""
        with self._lock:
            if recording.state is not self._state:
                recording.state = self._state
                recording.graph = recording.make()
        return recording

    def clock(self, calls: Sequence[Call]) -> Callable[[], list[float]]:
        # As graphs, even short calls run back to back, without gaps that would count as their time.
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

    def _or_none(self, make: Callable[[Any], Any], of: Any) -> Any:
        """The driver's result; None if it fails. Each reason is logged once: it usually stops every recording."""
        try:
            return make(of)
        except BackendError as error:
            if str(error) not in self._told:
                self._told.add(str(error))
                log.warning("capturing a CUDA graph failed, so calls are enqueued individually: %s", error)
            return None

    def launch(self, recording: "Recording") -> None:
        """Enqueue a recording without waiting for it."""
        with self._lock:
            self._refresh(recording)
            if recording.graph is None:
                recording.enqueue()
            else:
                self.driver.launch_graph(recording.graph)


@dataclass(eq=False)
class Recording:
    """Recorded work. Calling it enqueues the work without waiting for it.

    Attributes:
        device: which runs it.
        enqueue: the recorded function. It keeps the memory alive that the graph uses.
        make: runs the work a few times, and captures it.
        graph: of the driver; None if capturing failed and calls are enqueued individually.
        state: of the device when the graph was captured.
    """

    device: CudaDevice
    enqueue: Call
    make: Callable[[], Any]
    graph: Any = None
    state: object = None

    def __call__(self) -> None:
        self.device.launch(self)
