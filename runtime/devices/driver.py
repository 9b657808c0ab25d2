"""The CUDA driver for a device: memory, one stream, and graphs captured from it."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ebca.engines.backends.protocol import Call
from ebca.engines.machine.memory import DeviceArray
from ebca.errors import BackendError
from ebca.plugins.kernels import launch


class CudaDriver(launch.CudaLauncher):
    """See `ebca.runtime.devices.cuda.Driver`.

    Attributes:
        stream: handle of the stream for all work.

    Raises:
        BackendError: no driver, no GPU of that index, or no cuda-bindings.
    """

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.index = index
        self.name = f"cuda:{index}"
        self.enter()
        # Non-blocking: other libraries in the process may use the default stream.
        self._stream = self._one("cuStreamCreate", self._api.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.stream = int(self._stream)

    def _one(self, name: str, *arguments: Any) -> Any:
        (result,) = self._call(name, *arguments)
        return result

    def enter(self) -> None:
        """Contexts are per thread, and any thread may call."""
        self._call("cuCtxSetCurrent", self._context)

    @contextmanager
    def _temporarily(self) -> Iterator[None]:
        """Restores the thread's context afterwards: finalizers run in threads that may be using another one."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def allocate(self, nbytes: int) -> int:
        self.enter()
        status, pointer = self._api.cuMemAlloc(nbytes)
        if status == self._api.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise MemoryError(f"the GPU has no {nbytes / 1e6:.0f} MB left")
        if status != self._api.CUresult.CUDA_SUCCESS:
            raise BackendError(
                f"cuMemAlloc of {nbytes} bytes failed: {status.name}", "`nvidia-smi` shows what uses the GPU"
            )
        self._call("cuMemsetD8Async", pointer, 0, nbytes, self._stream)
        return int(pointer)

    def free(self, pointer: int) -> None:
        with self._temporarily():
            self._call("cuMemFree", pointer)

    def allocate_host(self, nbytes: int) -> np.ndarray:
        self.enter()
        size = max(nbytes, 1)
        pointer = int(self._one("cuMemHostAlloc", size, 0))
        memory = _HostMemory(pointer, size)
        weakref.finalize(memory, self._free_host, pointer).atexit = False
        array = np.asarray(memory)[:nbytes]
        array[...] = 0
        return array

    def _free_host(self, pointer: int) -> None:
        with self._temporarily():
            self._call("cuMemFreeHost", pointer)

    def view(self, pointer: int, shape: Sequence[int], dtype: Any, owner: object) -> DeviceArray:
        return DeviceArray(pointer, tuple(shape), np.dtype(dtype), owner)

    def copy_in(self, pointer: int, source: np.ndarray) -> None:
        self.enter()
        self._call("cuMemcpyHtoDAsync", pointer, source.ctypes.data, source.nbytes, self._stream)

    def copy_out(self, target: np.ndarray, pointer: int) -> None:
        self.enter()
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, pointer, target.nbytes, self._stream)

    def submit(self, call: Call) -> None:
        self.enter()
        call()

    def capture(self, enqueue: Callable[[], None]) -> "_Graph":
        self.enter()
        self._call("cuStreamBeginCapture", self._stream, self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            enqueue()
        except BaseException as error:
            # The capture must end, or the stream stays in capture mode.
            status, unfinished = self._api.cuStreamEndCapture(self._stream)
            if status == self._api.CUresult.CUDA_SUCCESS:
                self._call("cuGraphDestroy", unfinished)
            if not isinstance(error, Exception):
                raise
            raise BackendError(f"the step cannot be captured: {error}") from error
        return self._instantiated(self._one("cuStreamEndCapture", self._stream))

    def chain(self, graphs: Sequence["_Graph"]) -> "_Graph":
        self.enter()
        parent = self._one("cuGraphCreate", 0)
        last: list[Any] = []
        for graph in graphs:
            # Children are copied, so the graphs may be destroyed before the parent.
            last = [self._one("cuGraphAddChildGraphNode", parent, last, len(last), graph.definition)]
        return self._instantiated(parent)

    def _instantiated(self, definition: Any) -> "_Graph":
        try:
            return _Graph(definition, self._one("cuGraphInstantiate", definition, 0), self)
        except BackendError:
            self._call("cuGraphDestroy", definition)
            raise

    def launch_graph(self, graph: "_Graph") -> None:
        self.enter()
        self._call("cuGraphLaunch", graph.executable, self._stream)

    def synchronize(self) -> None:
        self.enter()
        self._call("cuStreamSynchronize", self._stream)

    def mark(self) -> "_Mark":
        self.enter()
        mark = _Mark(self._one("cuEventCreate", 0), self)
        self._call("cuEventRecord", mark.event, self._stream)
        return mark

    def seconds(self, first: "_Mark", second: "_Mark") -> float:
        self.enter()
        return float(self._one("cuEventElapsedTime", first.event, second.event)) / 1e3

    def free_bytes(self) -> int:
        self.enter()
        free, _ = self._call("cuMemGetInfo")
        return int(free)

    def destroy(self, name: str, handle: Any) -> None:
        """Destroy a driver object; `name` is the driver's function for it."""
        with self._temporarily():
            self._call(name, handle)


class _HostMemory:
    """Pinned memory with the interface that numpy wraps without a copy."""

    def __init__(self, pointer: int, nbytes: int) -> None:
        self.__array_interface__ = {"data": (pointer, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}


class _Graph:
    """A graph and its executable; destroyed with the object."""

    def __init__(self, definition: Any, executable: Any, driver: CudaDriver) -> None:
        self.definition = definition
        self.executable = executable
        weakref.finalize(self, driver.destroy, "cuGraphDestroy", definition).atexit = False
        weakref.finalize(self, driver.destroy, "cuGraphExecDestroy", executable).atexit = False


class _Mark:
    """An event; destroyed with the object."""

    def __init__(self, event: Any, driver: CudaDriver) -> None:
        self.event = event
        weakref.finalize(self, driver.destroy, "cuEventDestroy", event).atexit = False
