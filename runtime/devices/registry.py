"""Opens devices by name."""

from ebca.errors import ParameterError
from ebca.runtime.devices.cpu import CpuDevice
from ebca.runtime.devices.cuda import CudaDevice
from ebca.runtime.devices.device import Device
from ebca.runtime.devices.driver import CudaDriver
from ebca.runtime.devices.kernels import CudaKernels

DEVICES = ("cpu", "cuda")


def parse(name: str) -> tuple[str, int]:
    """Kind and index of a device's name: ("cuda", 1) for "cuda:1". Raises ParameterError for an unknown name."""
    kind, colon, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (bool(colon) and not index.isdecimal())):
        raise ParameterError(f"device '{name}' is unknown", f"choose {', '.join(DEVICES)}, cuda:1 and so on")
    return kind, int(index or 0)


def create(name: str) -> Device:
    """Open a device: "cpu", "cuda" (the first GPU), "cuda:1" and so on.

    Raises:
        ParameterError: an unknown name.
        BackendError: the device cannot be used on this machine; the message says why.
    """
    kind, index = parse(name)
    if kind == "cpu":
        return CpuDevice()

    driver = CudaDriver(index)
    return CudaDevice(driver, CudaKernels(driver))
