"""Opens devices by name."""

from dataclasses import dataclass, replace

from ebca.engines.backends.protocol import Backend, BackendOptions
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.machine import nvidia
from ebca.errors import BackendError, ParameterError
from ebca.runtime.devices import requirements
from ebca.runtime.devices.choice import AUTO, DeviceChoice, choose, on_cpu_after, parse
from ebca.runtime.devices.cpu import CpuDevice
from ebca.runtime.devices.cuda import CudaDevice
from ebca.runtime.devices.device import Device
from ebca.runtime.devices.driver import CudaDriver
from ebca.runtime.devices.kernels import CudaKernels


@dataclass(frozen=True)
class Opened:
    """A device, the backend that opens components on it, and why it is this device."""

    device: Device
    backend: Backend
    choice: DeviceChoice


def open_for(directory: EngineDirectory, name: str, backend: str | None, options: BackendOptions) -> Opened:
    """Open the device and the backend for an engine directory.

    "auto" becomes the CPU if the GPU that it stands for turns out to be unusable (BackendError) while it is opened
    here. Nothing has been computed yet, and the reason is told in the one line that tells the choice. Components are
    opened later, and an error on the GPU then stays an error: to go on elsewhere, much more slowly, would hide it. A
    device that was named is never replaced, nor is a backend that only runs on a GPU.

    Args:
        directory: what will be opened.
        name: "auto", "cpu", "cuda", "cuda:1" and so on.
        backend, options: as the user gave them; a default backend for None.

    Raises:
        ParameterError: an unknown name, or values that do not go together.
        BackendError: the device or the backend cannot be used; the message says why.
    """
    choice = choose(directory, name, backend, options)
    if choice.device == "cpu":
        return _on_cpu(directory, choice, options)
    try:
        return _on_gpu(directory, choice, options)
    except BackendError as error:
        if name != AUTO or backend is not None:
            raise
        return _on_cpu(directory, on_cpu_after(error), options)


def create(name: str) -> Device:
    """Open a device: "cpu", "cuda" (the first GPU), "cuda:1" and so on.

    Raises:
        ParameterError: an unknown name.
        BackendError: the device cannot be used on this machine; the message says why.
    """
    kind, index = parse(name)
    if kind == AUTO:
        raise ParameterError("device 'auto' depends on the engine directory", "open the directory, or choose a device")
    if kind == "cpu":
        return CpuDevice()
    requirements.usable_gpu(index)
    driver = CudaDriver(index)
    return CudaDevice(driver, CudaKernels(driver))


def _on_cpu(directory: EngineDirectory, choice: DeviceChoice, options: BackendOptions) -> Opened:
    device = CpuDevice()
    return _opened(device, device.backend(choice.backend, directory, options), choice)


def _on_gpu(directory: EngineDirectory, choice: DeviceChoice, options: BackendOptions) -> Opened:
    _, index = parse(choice.device)
    driver = CudaDriver(index)
    try:
        gpu = nvidia.select(nvidia.find(), index)
        requirements.check_memory(directory, str(choice.backend), gpu, driver.free_bytes())
        device = CudaDevice(driver, CudaKernels(driver))
        return _opened(device, device.backend(choice.backend, directory, options), choice)
    except BaseException:
        # The context takes some hundred megabytes of the GPU.
        driver.close()
        raise


def _opened(device: Device, backend: Backend, choice: DeviceChoice) -> Opened:
    return Opened(device, backend, replace(choice, backend=backend.name))
