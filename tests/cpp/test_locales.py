"""Whatever locale a host has chosen, images have the same bits, texts the same numbers, and the cache stays good.

The locales of languages are made here from the system's sources; those that only group numbers need none.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import building

from ebca.runtime import native

SOURCES = Path("/usr/share/i18n/locales")
# Grouped with a comma, grouped with a point, another capital i, and a decimal point of two bytes.
LANGUAGES = ("en_US", "de_DE", "tr_TR", "ps_AF")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of locales, for LOCPATH."""
    if shutil.which("localedef") is None or not SOURCES.is_dir():
        pytest.skip("there is no localedef, or the sources of locales (package locales) are missing")
    folder = tmp_path_factory.mktemp("locales")
    command = ("localedef", "-f", "UTF-8", "-i")
    running = [
        subprocess.Popen(
            [*command, language, folder / f"{language}.UTF-8"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for language in LANGUAGES
    ]
    for language, one in zip(LANGUAGES, running, strict=True):
        # It warns about translations that are incomplete, and returns 1.
        said = one.communicate()
        assert (folder / f"{language}.UTF-8" / "LC_NUMERIC").is_file(), said
    return folder


class Host:
    """Runs the host program."""

    def __init__(self, program: Path, library: Path, engine: Path, onnxruntime: Path) -> None:
        self._command = [program, engine, onnxruntime]
        self._environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}

    def run(self, cache: Path, kind: str = "c", name: str = "C", locales: Path | None = None) -> list[str]:
        """The lines of what it says in a locale."""
        environment = self._environment | ({} if locales is None else {"LOCPATH": str(locales)})
        output = building.run(*self._command, cache, kind, name, env=environment)
        # How much memory there is differs from run to run.
        return re.sub(r"and \d+(\.\d)? [MGT]B can be had", "", output).splitlines()


@pytest.fixture(scope="module")
def host(
    tmp_path_factory: pytest.TempPathFactory, library_file: Path, shapes_dir: Path, onnxruntime_file: Path
) -> Host:
    if shutil.which("c++") is None:
        building.unavailable("there is no c++ to build a host with")
    program = tmp_path_factory.mktemp("host") / "locale_host"
    include = building.CPP / "include"
    building.run("c++", "-std=c++17", "-O0", f"-I{include}", HERE / "locale_host.cpp", library_file, "-o", program)
    return Host(program, library_file, shapes_dir, onnxruntime_file)


@pytest.fixture(scope="module")
def expected(host: Host, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the host says in the locale of C."""
    said = host.run(tmp_path_factory.mktemp("classic") / "cache")
    assert [line.split()[0] for line in said] == ["error", "memory", "image"]
    assert "height is 1234567; give a multiple of 4, such as 1234564 or 1234568" in said[0] and " TB" in said[1]
    return said


@pytest.mark.parametrize("separator", [",", " "], ids=["comma", "space"])
def test_a_global_locale_that_groups_numbers(
    host: Host, expected: list[str], separator: str, tmp_path: Path, shapes_dir: Path, library: native.Library
) -> None:
    """ONNX Runtime writes numbers into the prepared graphs as that locale says, and reads only those of C."""
    for _ in ("cold", "warm"):
        assert host.run(tmp_path, "facet", separator) == expected
    # The next process has no locale, and finds everything prepared.
    library.open(shapes_dir, cache=tmp_path, threads=1, on_prepare=_unexpected).close()
    assert host.run(tmp_path) == expected


def _unexpected(done: int, total: int, name: str) -> None:
    raise AssertionError(name)


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages(host: Host, expected: list[str], locales: Path, language: str, tmp_path: Path) -> None:
    name = f"{language}.UTF-8"
    for cold, warm in (("c++", "c"), ("c", "c++")):
        assert host.run(tmp_path / cold, cold, name, locales) == expected
        assert host.run(tmp_path / cold, warm, name, locales) == expected


def test_the_locale_of_a_thread(host: Host, expected: list[str], locales: Path, tmp_path: Path) -> None:
    assert host.run(tmp_path, "thread", "ps_AF.UTF-8", locales) == expected


GROUPING = """
#include <locale>
struct Grouped : std::numpunct<char> {
    char do_thousands_sep() const override { return ','; }
    std::string do_grouping() const override { return "\\3"; }
};
extern "C" void group() { std::locale::global(std::locale(std::locale::classic(), new Grouped)); }
"""

SCRIPT = """
import ctypes, hashlib, sys
import ebca
if sys.argv[1]:
    ctypes.CDLL(sys.argv[1]).group()
with ebca.load("shapes", backend="onnxruntime", threads=1) as engine:
    result = engine.session().generate("a red circle", steps=1, seed=1)
print(hashlib.sha256(result.latents.tobytes()).hexdigest())
"""


def test_python_in_a_host_that_groups_numbers(tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        building.unavailable("there is no c++ to build a library with")
    (tmp_path / "grouping.cpp").write_text(GROUPING)
    building.run("c++", "-shared", "-fPIC", tmp_path / "grouping.cpp", "-o", tmp_path / "grouping.so")
    environment = {**os.environ, "EBCA_CACHE_DIR": str(tmp_path / "cache")}

    def digest(library: Path | str) -> str:
        return building.run(sys.executable, "-c", SCRIPT, library, env=environment)

    grouped = [digest(tmp_path / "grouping.so") for _ in ("cold", "warm")]
    assert grouped == [digest("")] * 2
