"""Opens devices by name."""

from dataclasses import dataclass, replace

from ebca.engines.backends import registry as backends
from ebca.engines.backends.protocol import Backend, BackendOptions
from ebca.engines.contract.directory import EngineDirectory
from ebca.errors import BackendError, ParameterError
from ebca.runtime.devices import choice as choices
from ebca.runtime.devices import requirements
from ebca.runtime.devices.choice import AUTO, DeviceChoice
from ebca.runtime.devices.cpu import CpuDevice
from ebca.runtime.devices.cuda import CudaDevice
from ebca.runtime.devices.device import Device
from ebca.runtime.devices.driver import CudaDriver
from ebca.runtime.devices.kernels import CudaKernels

DEVICES = (AUTO, "cpu", "cuda")


@dataclass(frozen=True)
class Opened:
    """A device, the backend that opens components on it, and why it is this device."""

    device: Device
    backend: Backend
    choice: DeviceChoice


def parse(name: str) -> tuple[str, int]:
    """Kind and index of a device's name: ("cuda", 1) for "cuda:1". Raises ParameterError for an unknown name."""
    kind, colon, index = name.partition(":")
    if name not in (AUTO, "cpu") and (kind != "cuda" or (bool(colon) and not index.isdecimal())):
        raise ParameterError(f"device '{name}' is unknown", f"choose {', '.join(DEVICES)}, cuda:1 and so on")
    return kind, int(index or 0)


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
    kind, index = parse(name)
    choice = choices.choose(directory, backend, options) if kind == AUTO else DeviceChoice(name, "as asked", backend)
    if choice.device == "cpu":
        return _on_cpu(directory, choice, options)
    try:
        return _on_gpu(directory, choice, index, options)
    except BackendError as error:
        if kind != AUTO or backend is not None:
            raise
        return _on_cpu(directory, choices.refused(None, error), options)


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


def _on_gpu(directory: EngineDirectory, choice: DeviceChoice, index: int, options: BackendOptions) -> Opened:
    gpu, found = requirements.usable_gpu(index)
    name = choice.backend or next(iter(directory.manifest.plans), "onnxruntime-cuda")
    backends.check_on_gpu(name, directory, gpu, found.cuda)
    requirements.check_kernels(directory.manifest, gpu)
    driver = CudaDriver(index)
    try:
        requirements.check_memory(directory, name, gpu, driver.free_bytes())
        device = CudaDevice(driver, CudaKernels(driver))
        return _opened(device, device.backend(name, directory, options), choice)
    except BaseException:
        # The context takes some hundred megabytes of the GPU.
        driver.close()
        raise


def _opened(device: Device, backend: Backend, choice: DeviceChoice) -> Opened:
    return Opened(device, backend, replace(choice, backend=backend.name))
