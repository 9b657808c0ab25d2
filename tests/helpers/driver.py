"""A CUDA driver without a GPU. Its device memory is separate host memory, its stream runs work immediately, and its
graphs are lists of enqueued calls. It counts the calls of each kind."""

import ctypes
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ebca.engines.backends import onnxruntime_provider
from ebca.engines.backends import registry as backends
from ebca.engines.backends.protocol import Arrays, BackendOptions, Call
from ebca.engines.contract.directory import open_directory
from ebca.engines.contract.manifest import LayerSpec
from ebca.engines.machine import nvidia
from ebca.engines.machine.nvidia import Gpu, Nvidia
from ebca.errors import BackendError
from ebca.plugins.exclusive_attention import windows
from ebca.plugins.sampling import reference
from ebca.runtime.devices import registry as devices
from ebca.runtime.devices import requirements
from ebca.runtime.devices.cuda import CudaDevice
from ebca.runtime.engine import Engine

if TYPE_CHECKING:
    # Not in the interpreter of `helpers.cuda_standins`.
    import pytest


class HostKernels:
    """The sampling kernels in numpy. There is no kernel for the op, so the backend runs its graph."""

    def operator(self, variant: str, layer: LayerSpec, dtype: np.dtype[Any]) -> None:
        return None

    def sampling(self, kernel: str, arrays: Arrays) -> Call:
        bound, run = dict(arrays), getattr(reference, kernel)
        return lambda: run(bound)

    def exclude(self, arrays: Arrays, layer_stride: int) -> Call:
        maps = arrays["maps"]
        spread = np.lib.stride_tricks.as_strided(maps, strides=(layer_stride * maps.itemsize, *maps.strides[1:]))
        bound = {**arrays, "maps": spread}
        return lambda: windows.exclude(bound)

    def register(self, trt: Any, registry: Any) -> object:
        raise AssertionError("the backends of these tests take no plugins")


def pretend_gpus(monkeypatch: "pytest.MonkeyPatch", *gpus: Gpu, cuda: str = "13.0", free: int = 8 << 30) -> list[str]:
    """Simulates GPUs, ready to use with ONNX Runtime: devices on them are on the host, and so is their backend.

    Returns:
        A list that gets a line when a driver is opened or closed.
    """
    events: list[str] = []

    class Driver(HostDriver):
        def __init__(self, index: int) -> None:
            super().__init__(f"cuda:{index}", index)
            events.append(f"open {index}")

        def free_bytes(self) -> int:
            return free

        def close(self) -> None:
            events.append(f"close {self.index}")

    def create(name: str, *_: Any) -> Any:
        backend = backends.create("onnxruntime", BackendOptions())
        backend.name = name
        return backend

    monkeypatch.setattr(nvidia, "find", lambda: Nvidia(cuda, gpus))
    monkeypatch.setattr(requirements, "installed_version", lambda package: "13.5.0")
    monkeypatch.setattr(onnxruntime_provider, "check_provider", lambda cuda: "1.31.1, CUDA 13.0")
    monkeypatch.setattr(devices, "CudaDriver", Driver)
    monkeypatch.setattr(devices, "CudaKernels", lambda driver: HostKernels())
    monkeypatch.setattr(backends, "create_on_gpu", create)
    return events


def host_device(**settings: Any) -> tuple[CudaDevice, "HostDriver"]:
    """A CUDA device on the host, and its driver."""
    driver = HostDriver(**settings)
    return CudaDevice(driver, HostKernels()), driver


def host_engine(directory: Path, **settings: Any) -> tuple[Engine, "HostDriver"]:
    """An engine on a CUDA device on the host, with ONNX Runtime as its backend, and the device's driver."""
    device, driver = host_device(**settings)
    return Engine(open_directory(directory), backends.create("onnxruntime", BackendOptions()), device), driver


@dataclass
class HostDriver:
    """See `ebca.runtime.devices.cuda.Driver`. `count` counts calls by name, except those inside a graph."""

    name: str = "cuda:0"
    index: int = 0
    stream: int = 0
    refuse_capture: bool = False
    refuse_chain: bool = False
    count: Counter[str] = field(default_factory=Counter)
    memory: dict[int, np.ndarray] = field(default_factory=dict)
    _recording: list[Call] | None = None

    def allocate(self, nbytes: int) -> int:
        self.count["allocate"] += 1
        raw = np.zeros(nbytes + 64, np.uint8)
        pointer = raw.ctypes.data + -raw.ctypes.data % 64
        self.memory[pointer] = raw
        return pointer

    def free(self, pointer: int) -> None:
        self.count["free"] += 1
        del self.memory[pointer]

    def allocate_host(self, nbytes: int) -> np.ndarray:
        self.count["allocate_host"] += 1
        return np.zeros(nbytes, np.uint8)

    def view(self, pointer: int, shape: Sequence[int], dtype: Any, owner: object) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        buffer = (ctypes.c_uint8 * size).from_address(pointer)
        # The array keeps its owner alive.
        buffer.owner = owner
        return np.frombuffer(buffer, dtype).reshape(shape)

    def copy_in(self, pointer: int, source: np.ndarray) -> None:
        self._enqueue("copy_in", lambda: ctypes.memmove(pointer, source.ctypes.data, source.nbytes))

    def copy_out(self, target: np.ndarray, pointer: int) -> None:
        self._enqueue("copy_out", lambda: ctypes.memmove(target.ctypes.data, pointer, target.nbytes))

    def enter(self) -> None:
        """There is one context."""

    def submit(self, call: Call) -> None:
        if self._recording is None:
            self._enqueue("submit", call)
            return
        # As in CUDA, a graph does not keep the captured calls alive.
        alive = weakref.ref(call)

        def run() -> None:
            bound = alive()
            assert bound is not None, "a graph uses freed memory"
            bound()

        self._enqueue("submit", run)

    def _enqueue(self, name: str, call: Callable[[], object]) -> None:
        if self._recording is None:
            self.count[name] += 1
            call()
        else:
            self._recording.append(call)  # type: ignore[arg-type]

    def capture(self, enqueue: Callable[[], None]) -> list[Call]:
        self.count["capture"] += 1
        assert self._recording is None, "nested captures"
        if self.refuse_capture:
            raise BackendError("operation not permitted when stream is capturing")
        self._recording = []
        try:
            enqueue()
            return self._recording
        finally:
            self._recording = None

    def chain(self, graphs: Sequence[list[Call]]) -> list[Call]:
        self.count["chain"] += 1
        if self.refuse_chain:
            raise BackendError("out of memory")
        return [call for graph in graphs for call in graph]

    def launch_graph(self, graph: list[Call]) -> None:
        assert self._recording is None, "a graph is launched during a capture"
        self.count["launch"] += 1
        for call in graph:
            call()

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, first: float, second: float) -> float:
        return second - first

    def free_bytes(self) -> int:
        return 2**33 - sum(raw.nbytes for raw in self.memory.values())

    def synchronize(self) -> None:
        assert self._recording is None, "the host waits during a capture"
        self.count["synchronize"] += 1
