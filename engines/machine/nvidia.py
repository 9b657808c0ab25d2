"""The NVIDIA driver and GPUs of this machine, queried through the driver's own library; no package is needed."""

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

from ebca.errors import BackendError

# CUDA's major version -> the oldest driver that runs what was built with any minor version of it, see table 1 of
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
_OLDEST_DRIVER = {12: "525", 13: "580"}
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


def select(found: Nvidia, index: int) -> Gpu:
    """The GPU of that number, as CUDA counts them.

    Raises:
        BackendError: there is no such GPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not found.gpus and visible is not None:
        raise BackendError(
            f"CUDA_VISIBLE_DEVICES is '{visible}', so the NVIDIA driver shows no GPU",
            "unset it, or set it to the numbers of existing GPUs, such as 0",
        )
    if not found.gpus:
        raise BackendError(
            f"the NVIDIA driver (CUDA up to {found.cuda}) finds no GPU", "check it with `nvidia-smi`, or use the CPU"
        )
    if index >= len(found.gpus):
        present = ", ".join(f"cuda:{number} ({gpu.name})" for number, gpu in enumerate(found.gpus))
        limited = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is '{visible}'"
        raise BackendError(f"there is no GPU 'cuda:{index}'", f"choose from {present}{limited}")
    return found.gpus[index]


def check_cuda(found_cuda: str, needed: str, library: str) -> None:
    """Check that the driver is new enough for a library.

    Args:
        found_cuda: `Nvidia.cuda`, what the driver supports.
        needed: the CUDA version that the library was built with, such as "13.0". Only its major version counts.
        library: name and version.

    Raises:
        BackendError: the driver is too old.
    """
    major = int(needed.split(".")[0])
    if int(found_cuda.split(".")[0]) < major:
        oldest = f" to version {_OLDEST_DRIVER[major]} or newer" if major in _OLDEST_DRIVER else ""
        raise BackendError(
            f"the NVIDIA driver supports CUDA up to {found_cuda}, {library} needs CUDA {major}",
            f"update the driver{oldest}",
        )


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
