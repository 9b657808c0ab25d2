"""The CUDA driver, through cuda-bindings: memory, one stream, and graphs captured from it."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ebca.engines.backend import Call
from ebca.engines.memory import DeviceArray
from ebca.errors import BackendError

_INSTALL = 'CUDA needs the package cuda-bindings; run `pip install "ebca[gpu]"`'


class CudaDriver:
    """See `ebca.runtime.cuda.Driver`.

    Attributes:
        stream: handle of the stream that everything is enqueued on.
        compute_capability: such as (8, 9).

    Raises:
        BackendError: no driver, no GPU of that index, or no cuda-bindings.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            from cuda.bindings import driver
        except ImportError:
            raise BackendError(_INSTALL) from None
        self._cuda = driver
        self.name = f"cuda:{index}"
        try:
            self._do(driver.cuInit(0))
            count = self._do(driver.cuDeviceGetCount())
        except (BackendError, RuntimeError) as error:
            line = str(error).strip().splitlines()[0]
            raise BackendError(
                f"no NVIDIA GPU can be used on this machine ({line}); install NVIDIA's driver, or use device 'cpu'"
            ) from None
        if index >= count:
            raise BackendError(f"there is no GPU {index}; this machine has {count}, counted from 0")
        device = self._do(driver.cuDeviceGet(index))
        # The primary context is the one that ONNX Runtime, TensorRT and PyTorch use.
        self._context = self._do(driver.cuDevicePrimaryCtxRetain(device))
        self._do(driver.cuCtxSetCurrent(self._context))
        attribute = driver.CUdevice_attribute
        self.compute_capability = (
            int(self._do(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))),
            int(self._do(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))),
        )
        self._stream = self._do(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.stream = int(self._stream)

    def _do(self, answer: Any) -> Any:
        """The value of a driver call. Raises BackendError, or MemoryError where that is what it is."""
        status, *values = answer
        results = self._cuda.CUresult
        if status == results.CUDA_SUCCESS:
            return values[0] if values else None
        if status == results.CUDA_ERROR_OUT_OF_MEMORY:
            raise MemoryError("the GPU has no memory left")
        _, text = self._cuda.cuGetErrorString(status)
        raise BackendError(f"CUDA error {int(status)}: {text.decode() if text else status.name}")

    def _enter(self) -> None:
        """A context is current per thread, and any thread may call."""
        self._do(self._cuda.cuCtxSetCurrent(self._context))

    def allocate(self, nbytes: int) -> int:
        self._enter()
        pointer = self._do(self._cuda.cuMemAlloc(nbytes))
        self._do(self._cuda.cuMemsetD8Async(pointer, 0, nbytes, self._stream))
        return int(pointer)

    def free(self, pointer: int) -> None:
        self._enter()
        self._do(self._cuda.cuMemFree(pointer))

    def allocate_host(self, nbytes: int) -> np.ndarray:
        self._enter()
        size = max(nbytes, 1)
        pointer = int(self._do(self._cuda.cuMemHostAlloc(size, 0)))
        memory = _HostMemory(pointer, size)
        weakref.finalize(memory, self._free_host, pointer).atexit = False
        array = np.asarray(memory)[:nbytes]
        array[...] = 0
        return array

    def _free_host(self, pointer: int) -> None:
        self._enter()
        self._do(self._cuda.cuMemFreeHost(pointer))

    def view(self, pointer: int, shape: Sequence[int], dtype: Any, owner: object) -> DeviceArray:
        return DeviceArray(pointer, tuple(shape), np.dtype(dtype), owner)

    def copy_in(self, pointer: int, source: np.ndarray) -> None:
        self._enter()
        self._do(self._cuda.cuMemcpyHtoDAsync(pointer, source.ctypes.data, source.nbytes, self._stream))

    def copy_out(self, target: np.ndarray, pointer: int) -> None:
        self._enter()
        self._do(self._cuda.cuMemcpyDtoHAsync(target.ctypes.data, pointer, target.nbytes, self._stream))

    def submit(self, call: Call) -> None:
        self._enter()
        call()

    def capture(self, enqueue: Callable[[], None]) -> Any:
        cuda = self._cuda
        self._enter()
        self._do(cuda.cuStreamBeginCapture(self._stream, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED))
        try:
            enqueue()
        except Exception as error:
            # Without its end the stream would stay in capture.
            cuda.cuStreamEndCapture(self._stream)
            raise BackendError(f"the step cannot be captured: {error}") from error
        graph = self._do(cuda.cuStreamEndCapture(self._stream))
        executable = self._do(cuda.cuGraphInstantiate(graph, 0))
        self._do(cuda.cuGraphDestroy(graph))
        return _Graph(executable, self)

    def launch(self, graph: "_Graph") -> None:
        self._enter()
        self._do(self._cuda.cuGraphLaunch(graph.executable, self._stream))

    def synchronize(self) -> None:
        self._enter()
        self._do(self._cuda.cuStreamSynchronize(self._stream))

    def destroy(self, executable: Any) -> None:
        """Give the resources of an instantiated graph back."""
        self._enter()
        self._do(self._cuda.cuGraphExecDestroy(executable))


class _HostMemory:
    """Pinned memory in a form that numpy takes as it is."""

    def __init__(self, pointer: int, nbytes: int) -> None:
        self.__array_interface__ = {"data": (pointer, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}


class _Graph:
    """An instantiated graph; destroyed with the object."""

    def __init__(self, executable: Any, driver: CudaDriver) -> None:
        self.executable = executable
        weakref.finalize(self, driver.destroy, executable).atexit = False
