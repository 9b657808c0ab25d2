"""Programs that tests build and run."""

import fcntl
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

CPP = Path(__file__).parents[2] / "runtime" / "cpp"
_CONTRACT = (
    *("checks", "dims", "entry", "json", "manifest", "model_checks", "reading", "sha256", "tensor", "validation"),
)
CONTRACT = ["numerals", "platform/linux", "platform/posix", *(f"contract/{name}" for name in _CONTRACT)]
"""The sources that a program needs to read manifests."""
DIRECTORY = [*CONTRACT, "contract/directory"]
"""The sources that a program needs to open engine directories."""
_PARTS = {"images/resize": "ebca_resize"}
"""The part of the library that a source belongs to which is not in its core."""


def unavailable(reason: str) -> NoReturn:
    """Skip a test for what this machine lacks, or fail where it is required."""
    if os.environ.get("EBCA_CPP_REQUIRED"):
        pytest.fail(reason)
    pytest.skip(reason)


def compiler() -> list[str]:
    """The C++ compiler with its options: CXX and EBCA_CXXFLAGS, which choose another standard library too."""
    return [os.environ.get("CXX", "c++"), *os.environ.get("EBCA_CXXFLAGS", "").split()]


def standard_library() -> list[str]:
    """What links the library of C++ that this compiler uses to a program in C."""
    return ["-lc++", "-lc++abi"] if "-stdlib=libc++" in compiler() else ["-lstdc++"]


def link_options(library: Path) -> list[str]:
    """What links a program to the shared library, which it finds where it is now."""
    return [f"-L{library.parent}", "-lebca", f"-Wl,-rpath,{library.parent}"]


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that all its test processes see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Hold while something is built in `folder`: one test process at a time."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(*command: str | Path, **options: Any) -> str:
    """Run a program; its output, which is shown if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def link(
    program: Path, mains: Iterable[Path], sources: Iterable[str], cmake_build: Path, header_options: Iterable[str]
) -> None:
    """Build a program from some sources of its own and some of the library, which are compiled already; what error
    texts need is added."""
    includes = [f"-I{option.partition('=')[2]}" for option in header_options]
    objects = [
        cmake_build / "CMakeFiles" / f"{_PARTS.get(name, 'ebca_core')}.dir" / "src" / f"{name}.cpp.o"
        for name in {"numerals": 0, **dict.fromkeys(sources)}
    ]
    run(*compiler(), "-std=c++17", "-O0", f"-I{CPP / 'src'}", *includes, *mains, *objects, "-o", program)
