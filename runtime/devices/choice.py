"""Which device an engine runs on, and why."""

from dataclasses import dataclass

from ebca.engines.backends import registry as backends
from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.machine.nvidia import Gpu, Nvidia
from ebca.errors import BackendError
from ebca.runtime.devices import requirements

AUTO = "auto"


@dataclass(frozen=True)
class DeviceChoice:
    """The device of an engine. As text: "device: cuda (NVIDIA RTX 4090, onnxruntime-cuda)".

    Attributes:
        device: "cpu", "cuda", "cuda:1" and so on.
        reason: why, in words.
        backend: name of the backend; None for the default of the device.
    """

    device: str
    reason: str
    backend: str | None = None

    def __str__(self) -> str:
        return f"device: {self.device} ({self.reason})"


def choose(directory: EngineDirectory, backend: str | None, options: BackendOptions) -> DeviceChoice:
    """What "auto" stands for, see `ebca.load`. Nothing is opened, and for the CPU nothing of CUDA is imported.

    Args:
        directory: the engine directory.
        backend, options: as the user gave them.
    """
    if backend in backends.GPU_BACKENDS:
        return DeviceChoice("cuda", f"backend {backend} runs on a GPU", backend)
    if backend is not None:
        return DeviceChoice("cpu", f"backend {backend} runs on the CPU", backend)
    if options.precision != BackendOptions.precision:
        return DeviceChoice("cpu", f"precision {options.precision} is for the CPU")
    if options.threads is not None:
        return DeviceChoice("cpu", "threads are for the CPU")
    if directory.manifest.compute != "fp16":
        return DeviceChoice("cpu", "the engine directory computes in float32")
    try:
        gpu, found = requirements.usable_gpu(0)
    except BackendError as error:
        return DeviceChoice("cpu", str(error))
    try:
        requirements.check_kernels(directory.manifest, gpu)
        name, skipped = _backend_on(directory, gpu, found)
    except BackendError as error:
        return refused(gpu, error)
    return DeviceChoice("cuda", f"{gpu.name}, {name}{skipped}", name)


def refused(gpu: Gpu | None, error: BackendError) -> DeviceChoice:
    """The CPU, because a GPU cannot be used."""
    subject = "" if gpu is None else f"{gpu.name} cannot be used: "
    return DeviceChoice("cpu", f"{subject}{error}")


def _backend_on(directory: EngineDirectory, gpu: Gpu, found: Nvidia) -> tuple[str, str]:
    """The first backend that can run the directory on a GPU, and why those before it cannot.

    Raises:
        BackendError: none can. It is the reason of the backend that the directory has plans for, if it has plans.
    """
    errors: dict[str, BackendError] = {}
    planned = [name for name in directory.manifest.plans if name in backends.GPU_BACKENDS]
    for name in (*planned, "onnxruntime-cuda"):
        try:
            backends.check_on_gpu(name, directory, gpu, found.cuda)
        except BackendError as error:
            errors[name] = error
        else:
            return name, "".join(f"; not {other}: {error.problem}" for other, error in errors.items())
    raise next(iter(errors.values()))
