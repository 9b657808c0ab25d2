"""Which device an engine runs on, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

from ebca.engines.backends import registry as backends
from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.machine.nvidia import Gpu, Nvidia
from ebca.errors import BackendError, ParameterError
from ebca.runtime.devices import requirements

AUTO = "auto"
DEVICES = (AUTO, "cpu", "cuda")

WITHOUT_PLANS = "onnxruntime-cuda"
"""The backend on a GPU that needs none."""


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


def parse(name: str) -> tuple[str, int]:
    """Kind and index of a device's name: ("cuda", 1) for "cuda:1". Raises ParameterError for an unknown name."""
    kind, colon, index = name.partition(":") if isinstance(name, str) else ("", "", "")
    if name not in (AUTO, "cpu") and (kind != "cuda" or (bool(colon) and not index.isdecimal())):
        raise ParameterError(f"device '{name}' is unknown", f"choose {', '.join(DEVICES)}, cuda:1 and so on")
    return kind, int(index or 0)


def choose(directory: EngineDirectory, name: str, backend: str | None, options: BackendOptions) -> DeviceChoice:
    """The device and the backend for an engine directory, see `ebca.load`. Nothing is opened, and a directory that
    computes in float32 imports nothing of CUDA.

    Args:
        directory: the engine directory.
        name, backend, options: as the user gave them.

    Raises:
        ParameterError: an unknown name, or a backend that does not run on the device.
        BackendError: a GPU that was named, or is needed for a backend that was named, cannot be used.
    """
    kind, index = parse(name)
    if kind == AUTO and backend in backends.GPU_BACKENDS:
        kind, name = "cuda", "cuda"
    if kind == AUTO:
        return _automatic(directory, backend, options)
    if kind == "cpu":
        return DeviceChoice(name, "as asked", backend)
    gpu, found = requirements.usable_gpu(index)
    return _on_gpu(directory, name, gpu, found, [backend or next(iter(directory.manifest.plans), WITHOUT_PLANS)])


def on_cpu_after(error: BackendError, gpu: Gpu | None = None) -> DeviceChoice:
    """The CPU, because a GPU cannot be used."""
    subject = "" if gpu is None else f"{gpu.name} cannot be used: "
    return DeviceChoice("cpu", f"{subject}{error}")


def _automatic(directory: EngineDirectory, backend: str | None, options: BackendOptions) -> DeviceChoice:
    if backend is not None:
        return DeviceChoice("cpu", f"backend {backend} runs on the CPU", backend)
    if options.precision != BackendOptions.precision:
        return DeviceChoice("cpu", f"precision {options.precision} is for the CPU")
    if options.threads is not None:
        return DeviceChoice("cpu", "a number of threads is for the CPU")
    if directory.manifest.compute != "fp16":
        return DeviceChoice("cpu", "the engine directory computes in float32")
    try:
        gpu, found = requirements.usable_gpu(0)
    except BackendError as error:
        return on_cpu_after(error)
    planned = [name for name in directory.manifest.plans if name in backends.GPU_BACKENDS]
    try:
        return _on_gpu(directory, "cuda", gpu, found, [*planned, WITHOUT_PLANS])
    except BackendError as error:
        return on_cpu_after(error, gpu)


def _on_gpu(directory: EngineDirectory, device: str, gpu: Gpu, found: Nvidia, names: Sequence[str]) -> DeviceChoice:
    """A GPU with the first of these backends that can run the directory on it, and why those before it cannot.

    Raises:
        BackendError: none can. It is the reason of the first.
    """
    requirements.check_kernels(directory.manifest, gpu)
    errors: dict[str, BackendError] = {}
    for name in names:
        try:
            backends.check_on_gpu(name, directory, gpu, found.cuda)
        except BackendError as error:
            errors[name] = error
        else:
            skipped = "".join(f"; not {other}: {error.problem}" for other, error in errors.items())
            return DeviceChoice(device, f"{gpu.name}, {name}{skipped}", name)
    raise next(iter(errors.values()))
