"""What is asked of the NVIDIA driver, with a stand-in for it."""

import ctypes
from typing import Any

import pytest

from ebca.engines.machine import nvidia
from ebca.engines.machine.nvidia import Gpu, Nvidia
from ebca.errors import BackendError


class Driver:
    """The driver's library with some GPUs; `broken` makes one call fail with 999."""

    def __init__(self, *gpus: Gpu, cuda: int = 13000, broken: str = "") -> None:
        self.gpus = gpus
        self.cuda = cuda
        self.broken = broken

    def __getattribute__(self, name: str) -> Any:
        return (lambda *args: 999) if name == super().__getattribute__("broken") else super().__getattribute__(name)

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = self.cuda
        return 0

    def cuInit(self, flags: int) -> int:
        return 0 if self.gpus else 100

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = index
        return 0

    def cuDeviceGetName(self, buffer: Any, size: int, device: ctypes.c_int) -> int:
        buffer.value = self.gpus[device.value].name.encode()
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: ctypes.c_int) -> int:
        out._obj.value = self.gpus[device.value].memory
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: ctypes.c_int) -> int:
        out._obj.value = int(self.gpus[device.value].compute_capability.split(".")[attribute == 76])
        return 0


ADA = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30)
TESLA = Gpu("Tesla T4", "7.5", 16 << 30)


def test_every_gpu_is_found() -> None:
    assert nvidia.find(Driver(ADA, TESLA, cuda=12080)) == Nvidia("12.8", (ADA, TESLA))


def test_a_driver_without_a_gpu_finds_none() -> None:
    assert nvidia.find(Driver()) == Nvidia("13.0", ())


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount", "cuDeviceGetAttribute"])
def test_a_broken_driver_is_one_line(call: str) -> None:
    with pytest.raises(BackendError, match=rf"the NVIDIA driver does not work \({call}: error 999\); restart"):
        nvidia.find(Driver(ADA, broken=call))


def test_a_missing_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "_DRIVER", "libcuda-of-nowhere.so.1")
    with pytest.raises(BackendError, match="there is no NVIDIA driver; install"):
        nvidia.find()


# --- whether a GPU can be used


def test_a_gpu_is_selected_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = Nvidia("13.0", (ADA, TESLA))
    assert nvidia.select(found, 1) == TESLA
    with pytest.raises(BackendError) as error:
        nvidia.select(found, 2)
    expected = "there is no GPU 'cuda:2'; choose from cuda:0 (NVIDIA GeForce RTX 4090), cuda:1 (Tesla T4)"
    assert str(error.value) == expected
    with pytest.raises(BackendError, match=r"the NVIDIA driver \(CUDA up to 13\.0\) finds no GPU; check it with"):
        nvidia.select(Nvidia("13.0", ()), 0)


@pytest.mark.parametrize("visible", ["", "-1"])
def test_gpus_that_the_environment_hides(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(BackendError, match=f"CUDA_VISIBLE_DEVICES is '{visible}', so the NVIDIA driver shows no GPU"):
        nvidia.select(Nvidia("13.0", ()), 0)
    with pytest.raises(BackendError, match=f"choose from cuda:0 .*; CUDA_VISIBLE_DEVICES is '{visible}'"):
        nvidia.select(Nvidia("13.0", (ADA,)), 1)


def test_a_driver_that_is_too_old_for_a_library() -> None:
    for found, needed in (("13.0", "13.0"), ("13.0", "13.5.0"), ("14.1", "13.0"), ("12.2", "12.9")):
        nvidia.check_cuda(found, needed, "library 1")
    with pytest.raises(BackendError) as error:
        nvidia.check_cuda("12.8", "13.0", "library 1")
    expected = (
        "the NVIDIA driver supports CUDA up to 12.8, library 1 needs CUDA 13; update the driver to version 580 or"
    )
    assert str(error.value) == f"{expected} newer"
    with pytest.raises(BackendError, match=r"needs CUDA 15; update the driver$"):
        nvidia.check_cuda("13.0", "15.0", "library 1")
