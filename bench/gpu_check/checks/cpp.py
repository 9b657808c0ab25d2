"""Is the C library as fast as Python?"""

import os
import sysconfig
from pathlib import Path
from typing import Final

from ebca.bench.gpu_check.checks import child
from ebca.bench.gpu_check.results import Found, Skipped, against
from ebca.bench.gpu_check.visit import BACKEND, Visit
from ebca.errors import BackendError
from ebca.runtime.native import find_library

RATIO: Final = 1.03


def run(visit: Visit, found: Found) -> None:
    engine = visit.engine("model")
    try:
        found["library"] = find_library().name
    except BackendError as error:
        raise Skipped(str(error)) from None
    found["cpp"] = cpp = child.measure("cpp", engine, BACKEND, {"LD_LIBRARY_PATH": library_path()})
    found["python"] = python = child.measure("python", engine, BACKEND)
    found["cpp_over_python"] = against(cpp["denoising_s"] / python["denoising_s"], RATIO)


def library_path() -> str:
    """LD_LIBRARY_PATH with the CUDA libraries that are installed as Python packages."""
    packages = Path(sysconfig.get_paths()["platlib"]) / "nvidia"
    folders = [str(folder) for folder in sorted(packages.glob("*/lib"))]
    return os.pathsep.join([*folders, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
