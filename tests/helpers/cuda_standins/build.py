"""Compile and link the stand-ins.

What a library does lies in its C file in this folder. Every other function that the provider imports returns 0: the
provider is linked so that all of them must exist, and most are never called.
"""

import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

from helpers.cuda_standins.imports import imports

_HERE = Path(__file__).parent
# The functions are those of no header, and their arguments need not be used.
_COMPILE = ("-shared", "-fPIC", "-O1", "-w", "-fno-builtin")


def missing_tool() -> str | None:
    """The name of a program that `build` needs and this machine lacks."""
    return next((tool for tool in ("gcc", "objdump") if shutil.which(tool) is None), None)


def build(capi: Path, folder: Path) -> Path:
    """Make the libraries in `folder`, which becomes part of LD_LIBRARY_PATH.

    Args:
        capi: the folder `onnxruntime/capi` of an installed onnxruntime-gpu.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for library, functions in imports(capi).items():
        _link(library, functions, folder)
    return folder


def _link(library: str, functions: Collection[str], folder: Path) -> None:
    stubs, versions = folder / f"{library}.stubs.c", folder / f"{library}.map"
    # A function of the C file takes precedence over a weak one.
    lines = [f"__attribute__((weak)) long {name}(void) {{ return 0; }}" for name in sorted(functions)]
    stubs.write_text("\n".join(["int standin_library;", *lines]) + "\n", encoding="utf-8")
    versions.write_text(f"{library} {{ global: *; }};\n", encoding="utf-8")
    written = _HERE / f"{library.partition('.')[0]}.c"
    sources = [stubs, written] if written.is_file() else [stubs]
    link = [f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"]
    subprocess.run(["gcc", *_COMPILE, *link, "-o", folder / library, *sources], check=True)
