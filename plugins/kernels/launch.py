"""Launch the compiled kernels from Python, with the CUDA driver through cuda-bindings and without PyTorch or Triton.

    library = KernelLibrary(CudaLauncher(0))
    call = EnergyAttention(library).bind("update", "float16", shape, {"q": address, ...}, scratch=address)
    call(stream)                  any number of times, also while the stream is captured into a CUDA graph

The caller owns all memory: device addresses must stay valid as long as the bound call, or a graph that recorded it.
"""

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ebca.errors import BackendError
from ebca.plugins.kernels.binaries import Binary, Capability, KernelLaunch, KernelSet, pack_key

Stream = Any
"""A CUDA stream: its handle as an integer, or any object with `__cuda_stream__` (cuda-core, CuPy, PyTorch)."""


class Driver(Protocol):
    """The operations that a launch needs from a GPU."""

    @property
    def capability(self) -> Capability: ...

    def load(self, image: bytes, name: str) -> Any:
        """A function handle from a cubin, or from PTX text that ends in a zero byte."""

    def launch(
        self,
        function: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        stream: int,
        parameters: int,
    ) -> None:
        """Enqueue a kernel. `parameters` is the address of an array of addresses, one per argument, read before
        returning."""


class KernelLibrary:
    """The kernels on one device. Thread-safe; each binary is loaded when it is first bound."""

    def __init__(self, driver: Driver, kernels: KernelSet | None = None) -> None:
        self._driver = driver
        self._kernels = kernels or KernelSet.load()
        self._functions: dict[tuple[str, int], Any] = {}
        self._lock = threading.Lock()

    @property
    def kernels(self) -> KernelSet:
        """The set that binaries are loaded from."""
        return self._kernels

    @property
    def capability(self) -> Capability:
        """Compute capability of the device."""
        return self._driver.capability

    def bind(self, launches: Sequence[KernelLaunch], addresses: Mapping[str, int]) -> Callable[[Stream], None]:
        """A call that enqueues launches on a stream, in order.

        Args:
            addresses: name to device address, a multiple of 16 bytes, for every tensor of the launches.

        Raises ParameterError for an address that is missing or invalid, BackendError for a device that the kernels do
        not support or a driver that refuses them.
        """
        calls = [_BoundLaunch(self._driver, self._function(one.binary), one, addresses) for one in launches]

        def enqueue(stream: Stream) -> None:
            handle = _stream_handle(stream)
            for call in calls:
                call(handle)

        return enqueue

    def bind_kernel(
        self, kernel: str, blocks: int, values: Mapping[str, int | float], addresses: Mapping[str, int]
    ) -> Callable[[Stream], None]:
        """Bind one launch of a kernel that has a single form, by its name, number of blocks, sizes, and tensors."""
        return self.bind([self._kernels.launch(kernel, self.capability, (blocks, 1, 1), values)], addresses)

    def _function(self, binary: Binary) -> Any:
        key = (pack_key(binary), binary.offset)
        with self._lock:
            if key not in self._functions:
                self._functions[key] = self._driver.load(self._kernels.image(binary), binary.kernel)
            return self._functions[key]


class _BoundLaunch:
    """One launch with the parameter buffer that the driver reads at each call."""

    def __init__(self, driver: Driver, function: Any, launch: KernelLaunch, addresses: Mapping[str, int]) -> None:
        packed = launch.pack(addresses)
        self._buffer = ctypes.create_string_buffer(packed, len(packed))
        base = ctypes.addressof(self._buffer)
        self._parameters = (ctypes.c_void_p * len(launch.arguments))(*(base + a.offset for a in launch.arguments))
        self._driver, self._function, self._launch = driver, function, launch

    def __call__(self, stream: int) -> None:
        binary = self._launch.binary
        self._driver.launch(
            self._function,
            self._launch.grid,
            binary.block,
            binary.shared_bytes,
            stream,
            ctypes.addressof(self._parameters),
        )


class CudaLauncher:
    """The CUDA driver on the primary context of one device, which PyTorch and the CUDA runtime use too.

    A context manager: the context is retained, and kernels stay loaded, until `close`.

    Raises BackendError if cuda-bindings, the driver or the device is missing.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            from cuda.bindings import driver
        except ImportError:
            raise BackendError("the GPU kernels need cuda-bindings", 'run `pip install "ebca[gpu]"`') from None
        self._api: Any = driver
        try:
            self._call("cuInit", 0)
        except RuntimeError as error:  # raised by cuda-bindings if there is no libcuda
            raise BackendError(
                f"no NVIDIA driver on this machine ({error})", "install one, or run on the CPU"
            ) from None
        (handle,) = self._call("cuDeviceGet", device)
        attribute = driver.CUdevice_attribute
        (major,) = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle)
        (minor,) = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle)
        self.capability: Capability = (int(major), int(minor))
        self._device = handle
        (self._context,) = self._call("cuDevicePrimaryCtxRetain", handle)
        self._libraries: list[Any] = []

    def load(self, image: bytes, name: str) -> Any:
        """Load a library and return its kernel, which launches in the context of the given stream."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            (library,) = self._call("cuLibraryLoadData", image, None, None, 0, None, None, 0)
            self._libraries.append(library)
            (kernel,) = self._call("cuLibraryGetKernel", library, name.encode())
            # Load it now: otherwise the driver loads it at the first launch, which may be inside a capture.
            self._call("cuKernelGetFunction", kernel)
        finally:
            self._call("cuCtxPopCurrent")
        return self._api.CUfunction(int(kernel))

    def launch(
        self,
        function: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        stream: int,
        parameters: int,
    ) -> None:
        """cuLaunchKernel on a stream of the device's primary context."""
        self._call("cuLaunchKernel", function, *grid, *block, shared_bytes, stream, parameters, 0)

    def close(self) -> None:
        """Unload everything and release the context. Bound calls are invalid afterwards. May be called twice."""
        libraries, self._libraries = self._libraries, []
        for library in libraries:
            self._call("cuLibraryUnload", library)
        if self._context is not None:
            self._call("cuDevicePrimaryCtxRelease", self._device)
            self._context = None

    def __enter__(self) -> "CudaLauncher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        status, *results = getattr(self._api, name)(*arguments)
        if status != self._api.CUresult.CUDA_SUCCESS:
            _, text = self._api.cuGetErrorString(status)
            shown = text.decode() if text else str(status)
            raise BackendError(f"{name} failed: {shown}", "`nvidia-smi` shows whether the GPU and its driver are fine")
        return tuple(results)


def _stream_handle(stream: Stream) -> int:
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1])
    return int(stream)
