"""What keeps the library portable: system calls in one folder, headers that other systems' compilers take.

windows.sh builds and runs it for Windows; CXX=clang++ EBCA_CXXFLAGS=-stdlib=libc++ runs these tests with another
compiler and standard library.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CPP = Path(__file__).parents[2] / "runtime" / "cpp"
SYSTEM_HEADER = re.compile(
    r"#include <(sys/|mach/|arpa/|dlfcn|unistd|fcntl|poll|pthread|signal\.h|windows|psapi|io\.h|direct\.h)"
)
OF_ONE_COMPILER = re.compile(r"__builtin_|__int128|__attribute__|__declspec|__BYTE_ORDER__|__PRETTY_FUNCTION__")
OF_THE_SYSTEM = re.compile(r"\bgetenv\b|\bdl(open|sym|error)\b|\bstrerror\b|/proc/|\bgetpid\b")


@pytest.mark.parametrize("pattern", [SYSTEM_HEADER, OF_ONE_COMPILER, OF_THE_SYSTEM])
def test_only_the_platform_folder_knows_systems_and_compilers(pattern: re.Pattern[str]) -> None:
    files = [path for path in (CPP / "src").rglob("*.?pp") if path.parent.name != "platform"]
    assert len(files) > 100
    found = [
        f"{path.relative_to(CPP)}: {line}"
        for path in files
        for line in path.read_text().splitlines()
        if pattern.search(line.partition("//")[0])
    ]
    assert found == []


@pytest.mark.parametrize("pattern", [SYSTEM_HEADER, OF_THE_SYSTEM])
def test_the_platform_folder_has_them(pattern: re.Pattern[str]) -> None:
    """The patterns find what they look for."""
    assert any(pattern.search(path.read_text()) for path in (CPP / "src" / "platform").iterdir())


@pytest.mark.parametrize("target", ["x86_64-pc-windows-msvc", "aarch64-pc-windows-msvc", "arm64-apple-macos12"])
def test_compilers_of_other_systems_take_the_c_header(target: str) -> None:
    clang = shutil.which("clang")
    if clang is None:
        pytest.skip("there is no clang, which knows other systems")
    words = [clang, "-target", target, "-ffreestanding", "-fsyntax-only", "-std=c99", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run([*words, "-xc", CPP / "include" / "ebca.h"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
