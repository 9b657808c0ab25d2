"""The GPU and the software that results belong to."""

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ebca
from ebca.engines.machine import nvidia
from ebca.engines.machine.processor import physical_cores
from ebca.errors import BackendError

_PACKAGES = (
    *("numpy", "onnxruntime-gpu", "onnxruntime", "cuda-bindings", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
    *("torch", "triton", "diffusers", "transformers", "onnx", "tensorrt-rtx", "tensorrt"),
)


def facts() -> dict[str, Any]:
    """`gpu`, `versions` and `cores` for every result. Raises BackendError if there is no GPU or no working driver."""
    found = nvidia.find()
    if not found.gpus:
        raise BackendError("the NVIDIA driver finds no GPU", "see `nvidia-smi`")
    return {
        "gpu": {**found.gpus[0].__dict__, "driver": _driver(), "cuda": found.cuda},
        "versions": {"ebca": ebca.__version__, "python": platform.python_version(), **_installed()},
        "cores": physical_cores(),
    }


def _driver() -> str | None:
    """The version of NVIDIA's driver; None without `nvidia-smi`."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def _installed() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
