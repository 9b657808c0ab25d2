"""The backends by name.

A new backend is one entry of the table and one module in this folder with a function `create`:

    on the CPU    create(options: BackendOptions) -> Backend
    on a GPU      create(target: GpuTarget) -> Backend, and in the module of the entry's `checks` a function
                  check(name: str, directory: EngineDirectory, gpu: Gpu, cuda: str) -> None, see `check_on_gpu`
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from ebca.engines.backends.gpu_target import GpuTarget
from ebca.engines.backends.protocol import Backend, BackendOptions, Register
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.machine.nvidia import Gpu
from ebca.errors import BackendError, ParameterError


@dataclass(frozen=True)
class Entry:
    """One backend.

    module: its module in this folder, imported when the backend is created.
    on_gpu: runs on an NVIDIA GPU, else on the CPU.
    needs: the Python package that must be installed; None if the module checks that itself.
    install: what to give to `pip install`.
    adds: what an optional backend is good for; "" if the package depends on it.
    checks: on a GPU, the module that says whether it can be used, without opening anything.
    """

    module: str
    on_gpu: bool
    needs: str | None = None
    install: str | None = None
    adds: str = ""
    checks: str = ""


TABLE: Final[Mapping[str, Entry]] = {
    "onnxruntime": Entry("onnxruntime", on_gpu=False, needs="onnxruntime", install="onnxruntime"),
    "openvino": Entry("openvino", on_gpu=False, needs="openvino", install='"ebca[openvino]"', adds="bfloat16"),
    "tensorrt-rtx": Entry("tensorrt", on_gpu=True, checks="tensorrt_library"),
    "tensorrt": Entry("tensorrt", on_gpu=True, checks="tensorrt_library"),
    "onnxruntime-cuda": Entry(
        "onnxruntime_cuda", on_gpu=True, needs="onnxruntime", install="onnxruntime-gpu", checks="onnxruntime_provider"
    ),
}

CPU_BACKENDS = tuple(name for name, entry in TABLE.items() if not entry.on_gpu)
GPU_BACKENDS = tuple(name for name, entry in TABLE.items() if entry.on_gpu)
PRECISIONS = ("fp32", "bf16")

# On the processors measured, openvino is the faster default for bfloat16. In float32 both are as fast, and onnxruntime
# needs 3 GB less at Stable Diffusion 1.5 size.
_PREFERENCE = {"fp32": ("onnxruntime", "openvino"), "bf16": ("openvino", "onnxruntime")}


def available() -> list[str]:
    """Names of the CPU backends whose library is installed."""
    return [name for name in CPU_BACKENDS if _is_installed(name)]


def create(name: str | None, options: BackendOptions) -> Backend:
    """A backend on the CPU.

    Args:
        name: one of CPU_BACKENDS; None for the faster default among those installed.

    Raises:
        BackendError: it is not installed, or does not support the precision.
        ParameterError: unknown name or precision, or no thread at all.
    """
    if options.precision not in PRECISIONS:
        raise ParameterError(f"precision '{options.precision}' is unknown", f"choose one of {', '.join(PRECISIONS)}")
    if options.threads is not None and not (isinstance(options.threads, int) and options.threads >= 1):
        raise ParameterError(f"threads is {options.threads}", "give 1 or more, or nothing for one per physical core")
    if name is None:
        present = available()
        name = next((one for one in _PREFERENCE[options.precision] if one in present), "onnxruntime")
    entry = _entry(name, on_gpu=False)
    backend: Backend = _module(name, entry.module).create(options)
    return backend


def create_on_gpu(
    name: str | None,
    directory: EngineDirectory,
    options: BackendOptions,
    gpu: Gpu,
    index: int,
    stream: int,
    register: Register | None = None,
) -> Backend:
    """A backend on a GPU.

    Args:
        name: one of GPU_BACKENDS; None for the library that the engine directory has plans for, else onnxruntime-cuda.
        directory: what the backend will open.
        options: the defaults; on a GPU the engine directory decides.
        gpu, index: the GPU, and its number on this machine.
        stream: handle of the CUDA stream to enqueue on.
        register: called if plans of the directory need plugins.

    Raises:
        BackendError: it is not installed, or the directory's plans do not fit this GPU; the message says what does.
        ParameterError: a backend that does not run on a GPU, or an option that is not available there.
    """
    if options.precision != "fp32" or options.threads is not None:
        raise ParameterError("precision and threads are for the CPU", "on a GPU the engine directory decides")
    if name is None:
        name = next(iter(directory.manifest.plans), "onnxruntime-cuda")
    entry = _entry(name, on_gpu=True)
    target = GpuTarget(name, directory, gpu, index, stream, register)
    backend: Backend = _module(name, entry.module).create(target)
    return backend


def check_on_gpu(name: str, directory: EngineDirectory, gpu: Gpu, cuda: str) -> None:
    """Check whether a backend can run an engine directory on a GPU, as far as that can be told without opening either.

    Args:
        name: one of GPU_BACKENDS.
        directory: what the backend would open.
        gpu, cuda: the GPU, and the newest CUDA version that the driver supports.

    Raises:
        BackendError: the backend is not installed, misses libraries, or cannot run this directory on this GPU.
        ParameterError: a backend that does not run on a GPU.
    """
    entry = _entry(name, on_gpu=True)
    _module(name, entry.checks).check(name, directory, gpu, cuda)


def _entry(name: str, *, on_gpu: bool) -> Entry:
    """The entry of an installed backend that runs there; raises as `create` does."""
    choices = GPU_BACKENDS if on_gpu else CPU_BACKENDS
    entry = TABLE.get(name) if isinstance(name, str) else None
    if entry is None:
        raise ParameterError(f"backend '{name}' is unknown", f"choose one of {', '.join(choices)}")
    if entry.on_gpu and not on_gpu:
        raise ParameterError(
            f"backend '{name}' runs on an NVIDIA GPU",
            f"choose device 'cuda', or one of {', '.join(choices)} for the CPU",
        )
    if on_gpu and not entry.on_gpu:
        raise ParameterError(
            f"backend '{name}' runs on the CPU", f"choose one of {', '.join(choices)}, or device 'cpu'"
        )
    if not _is_installed(name):
        raise BackendError(f"backend '{name}' is not installed", f"run `pip install {entry.install}`")
    return entry


def _module(name: str, module: str) -> Any:
    """A module of this folder. Raises BackendError if the library of its backend cannot be imported."""
    try:
        return import_module(f"ebca.engines.backends.{module}")
    except (ImportError, OSError, RuntimeError) as error:
        # A broken installation; openvino also refuses to start for a user without a home folder.
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = f"run `pip install --force-reinstall {TABLE[name].install or name}`, or use another backend"
        raise BackendError(f"the library of backend '{name}' cannot be imported: {line}", remedy) from None


def _is_installed(name: str) -> bool:
    needs = TABLE[name].needs
    return needs is None or find_spec(needs) is not None
