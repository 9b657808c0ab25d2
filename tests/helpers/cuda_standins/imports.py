"""Which functions ONNX Runtime's CUDA provider needs of NVIDIA's libraries, read from the provider."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

PROVIDER = "libonnxruntime_providers_cuda.so"
# Functions that the provider looks up by name while it runs, which the linker does not know: strings of the provider.
_LOOKED_UP = {
    "libcudnn.so.9": re.compile(rb"\0(cudnn[A-Z]\w+)(?=\0)"),
    "libcuda.so.1": re.compile(rb"\0(cu[A-Z]\w+)(?=\0)"),
}
_NVIDIA = re.compile(r"NEEDED\s+(libcu\S+)")
_UNDEFINED = re.compile(r"\*UND\*\s+[0-9a-f]+\s+(?:\(?(?P<version>[^\s()]+)\)?\s+)?(?P<name>\w+)$", re.MULTILINE)
# Functions without a version belong to the library whose names begin so. The driver's begin with "cu" too.
_UNVERSIONED = {"curand": "libcurand", "cu": "libcuda"}


def imports(capi: Path) -> Mapping[str, set[str]]:
    """Library -> the functions that the provider takes from it, perhaps none.

    Args:
        capi: the folder `onnxruntime/capi` of an installed onnxruntime-gpu.
    """
    provider = capi / PROVIDER
    found: dict[str, set[str]] = {library: set() for library in _NVIDIA.findall(_objdump("-p", provider))}
    for match in _UNDEFINED.finditer(_objdump("-T", provider)):
        library = match["version"] if match["version"] in found else _unversioned(match["name"], found)
        if library is not None:
            found[library].add(match["name"])
    content = provider.read_bytes()
    for library, pattern in _LOOKED_UP.items():
        found.setdefault(library, set()).update(name.decode() for name in pattern.findall(content))
    return found


def _unversioned(name: str, libraries: Mapping[str, object]) -> str | None:
    for prefix, stem in _UNVERSIONED.items():
        if name.startswith(prefix):
            return next(library for library in libraries if library.startswith(f"{stem}.so"))
    return None


def _objdump(option: str, library: Path) -> str:
    return subprocess.run(["objdump", option, str(library)], capture_output=True, text=True, check=True).stdout
