"""Whether ONNX Runtime's CUDA provider can start on this machine, before anything is opened with it.

A provider that cannot start leaves sessions that run on the CPU, and a message of the library on standard error. To ask
for its libraries first names those that are missing.
"""

import ctypes
import io
import sys
from contextlib import redirect_stdout
from typing import Any

import onnxruntime as ort

from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.machine import nvidia
from ebca.errors import BackendError

PROVIDER = "CUDAExecutionProvider"

# What the provider of 1.31 is linked with, and cuDNN, which it loads for the first convolution; "{}" is CUDA's major
# version. FFTs and compilation at run time are optional, and not used by our graphs.
_LIBRARIES = ("libcudart.so.{}", "libcublasLt.so.{}", "libcublas.so.{}", "libcurand.so.10", "libcudnn.so.9")


def check(name: str, directory: EngineDirectory, gpu: nvidia.Gpu, cuda: str) -> None:
    """See `ebca.engines.backends.registry.check_on_gpu`."""
    check_provider(cuda)


def check_provider(cuda: str, library: Any = ort) -> str:
    """Check that this ONNX Runtime has a CUDA provider, that the driver is new enough for it, and that its libraries
    load.

    Args:
        cuda: the newest CUDA version that the driver supports.
        library: replaces the module onnxruntime in tests.

    Returns:
        The versions of ONNX Runtime and of the CUDA that it was built with.

    Raises:
        BackendError: one of these is not so.
    """
    name = f"onnxruntime {library.__version__}"
    if PROVIDER not in library.get_available_providers():
        raise BackendError(
            f"{name} is built without CUDA",
            'run `pip uninstall onnxruntime` and `pip install "onnxruntime-gpu[cuda,cudnn]"`',
        )
    built_with = getattr(library, "cuda_version", "")
    # A build that does not say: opening the first graph will.
    if not built_with:
        return str(library.__version__)
    nvidia.check_cuda(cuda, built_with, name)
    preload(library)
    missing = [one for one in _library_names(built_with) if not _loads(one)]
    if missing:
        raise BackendError(
            f"{name} needs {', '.join(missing)} on the GPU",
            'run `pip install "onnxruntime-gpu[cuda,cudnn]"`, or add the folder of the library to LD_LIBRARY_PATH',
        )
    return f"{library.__version__}, CUDA {built_with}"


def preload(library: Any = ort) -> None:
    """Load CUDA and cuDNN that are installed as Python packages, where the system's loader does not find them."""
    function = getattr(library, "preload_dlls", None)
    if function is not None:
        # It prints what it does not find, and standard output belongs to the program.
        with redirect_stdout(io.StringIO()):
            function()


def _library_names(built_with: str) -> list[str]:
    # Elsewhere they have other names, and opening the first graph tells.
    if sys.platform != "linux":
        return []
    return [name.format(built_with.split(".")[0]) for name in _LIBRARIES]


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
