"""The NVIDIA driver and GPUs of this machine, queried through the driver's own library; no package is needed."""

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from ebca.errors import BackendError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True)
class Gpu:
    """Name, compute capability as "8.9", and memory in bytes."""

    name: str
    compute_capability: str
    memory: int


@dataclass(frozen=True)
class Nvidia:
    """`cuda`: the newest CUDA version that the driver supports, as "13.0"."""

    cuda: str
    gpus: tuple[Gpu, ...]


def find(driver: Any = None) -> Nvidia:
    """The driver and GPUs of this machine.

    driver: replaces the driver's library in tests.

    Raises:
        BackendError: there is no driver, or it does not work.
    """
    if driver is None:
        try:
            driver = ctypes.CDLL(_DRIVER)
        except OSError:
            raise BackendError(
                "there is no NVIDIA driver", "install one, or run on a machine with an NVIDIA GPU"
            ) from None
    version = ctypes.c_int()
    _do(driver.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    status = driver.cuInit(0)
    if status == _NO_DEVICE:
        return Nvidia(cuda, ())
    _do(status, "cuInit")
    count = ctypes.c_int()
    _do(driver.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    return Nvidia(cuda, tuple(_gpu(driver, index) for index in range(count.value)))


def _gpu(driver: Any, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _do(driver.cuDeviceGet(ctypes.byref(device), index), "cuDeviceGet")
    _do(driver.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    _do(driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device), "cuDeviceTotalMem")
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        _do(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "cuDeviceGetAttribute")
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)


def _do(status: int, call: str) -> None:
    if status != 0:
        raise BackendError(f"the NVIDIA driver does not work ({call}: error {status})", "restart, or install it again")
