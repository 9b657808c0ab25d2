"""The TensorRT libraries: which one is installed, and where its plans run."""

import hashlib
import importlib
import json
import platform as host
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.contract.plans import LibraryPlans
from ebca.engines.machine import nvidia
from ebca.engines.machine.cache_folder import cache_folder
from ebca.errors import BackendError, ParameterError

RTX = "tensorrt-rtx"
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
}
"""Library -> the Python modules that may provide it."""

_DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    RTX: ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings"),
    "tensorrt": ("tensorrt", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
}

_MINIMUM_RTX = (1, 7)

# Version 1.7.1 says on an H200, whatever a plan was built for: "The engine cannot run on this GPU, which has compute
# capability 9.0". So another export would not help.
_NEVER_RTX = ("9.0",)


def installed_version(library: str) -> str | None:
    """The library's version, without loading it; None if it is not installed."""
    for name in _DISTRIBUTIONS[library]:
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def require_installed(library: str) -> str:
    """The library's version, without loading it. Raises BackendError if it is not installed."""
    installed = installed_version(library)
    if installed is None:
        raise BackendError(f"{library} is not installed", _installation(library))
    return installed


def load_library(library: str) -> ModuleType:
    """The Python module of a library.

    Raises:
        BackendError: the library is not installed, is too old, or cannot be loaded.
        ParameterError: unknown library.
    """
    if library not in LIBRARIES:
        raise ParameterError(f"library '{library}' is unknown", f"choose one of {', '.join(LIBRARIES)}")
    remedy = _installation(library)
    name = next((name for name in LIBRARIES[library] if find_spec(name) is not None), None)
    if name is None:
        raise BackendError(f"{library} is not installed", remedy)
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"{library} cannot be loaded ({str(error).splitlines()[0]})", remedy) from None
    numbers = tuple(int(n) for n in re.findall(r"\d+", module.__version__)[:2])
    if library == RTX and numbers < _MINIMUM_RTX:
        raise BackendError(f"{library} is version {module.__version__}, 1.7 or newer is needed", remedy)
    return module


def _installation(library: str) -> str:
    return 'run `pip install "ebca[tensorrt-rtx]"`' if library == RTX else "run `pip install tensorrt`"


def platform_name() -> str:
    """Operating system and processor as plans record them, such as "linux-x86_64"."""
    return f"{host.system().lower()}-{host.machine().lower()}"


def supported_capabilities(library: str) -> tuple[str, ...]:
    """Compute capabilities that plans can be built for; empty for TensorRT, which builds for the installed GPU."""
    if library != RTX:
        return ()
    names = (name for name in dir(load_library(library).ComputeCapability) if re.fullmatch(r"SM\d+", name))
    return tuple(sorted((f"{name[2:-1]}.{name[-1]}" for name in names), key=version_key))


def version_key(text: str) -> tuple[int, ...]:
    return tuple(int(n) if n.isdecimal() else -1 for n in text.split("."))


def logger(trt: ModuleType) -> Any:
    """A logger for the library; `first` is the first error since `forget()`."""

    class Log(trt.ILogger):  # type: ignore[name-defined]
        """Keeps the first error and prints nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.first = ""

        def forget(self) -> None:
            self.first = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR and not self.first:
                self.first = message.strip().splitlines()[0]

    return Log()


def runs_on(library: str, gpu: nvidia.Gpu) -> None:
    """Raise BackendError if no plan of a library can run on a GPU."""
    if library == RTX and gpu.compute_capability in _NEVER_RTX:
        raise BackendError(
            f"TensorRT for RTX cannot run on {gpu.name}, which has compute capability {gpu.compute_capability}",
            "use --backend onnxruntime-cuda",
        )


def plans_of(directory: EngineDirectory, library: str) -> LibraryPlans:
    """The plans of an engine directory for a library. Raises BackendError if there are none."""
    if library not in directory.manifest.plans:
        raise BackendError(
            f"'{directory.path}' has no plans for {library}",
            f"export again with --backend {library}, or run it with another backend",
        )
    return directory.manifest.plans[library]


def check(library: str, directory: EngineDirectory, gpu: nvidia.Gpu, cuda: str) -> None:
    """See `ebca.engines.backends.registry.check_on_gpu`."""
    plans = plans_of(directory, library)
    runs_on(library, gpu)
    check_target(plans, library, gpu, require_installed(library))


def check_target(plans: LibraryPlans, library: str, gpu: nvidia.Gpu, installed: str) -> None:
    """Check that plans are for this platform, GPU and version, by their entry in the manifest.

    Raises:
        BackendError: another GPU, platform or version; the message says what to do.
    """
    runs_on(library, gpu)
    again = "export the engine again here, or with --backend onnxruntime-cuda"
    if plans.platform != platform_name():
        raise BackendError(f"this engine directory's plans are for {plans.platform}, this is {platform_name()}", again)
    if gpu.compute_capability not in plans.compute_capabilities:
        raise BackendError(
            f"this engine directory targets compute capability {' and '.join(plans.compute_capabilities)}, "
            f"{gpu.name} is {gpu.compute_capability}",
            _remedy(library, gpu.compute_capability),
        )
    if plans.version != installed:
        raise BackendError(
            f"the plans were built with {library} {plans.version}, {installed} is installed",
            f"run `pip install {library}=={plans.version}`, or export again",
        )


def _remedy(library: str, capability: str) -> str:
    if library == RTX and installed_version(RTX) and capability in supported_capabilities(RTX):
        return f"export again with --compute-capability {capability}"
    return "export again with --backend onnxruntime-cuda"


def runtime_cache(library: str, installed: str, gpu: nvidia.Gpu) -> Path:
    """Folder of the runtime caches in the user's cache; one per library, version and GPU."""
    key = json.dumps(identity(library, installed, gpu), sort_keys=True)
    return cache_folder() / f"{library}-{hashlib.sha256(key.encode()).hexdigest()[:24]}"


def identity(library: str, installed: str, gpu: nvidia.Gpu) -> dict[str, str]:
    """Everything besides its plan that a runtime cache depends on."""
    return {library: installed, "gpu": gpu.name, "capability": gpu.compute_capability}
