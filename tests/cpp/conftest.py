"""The C++ library, built once per run.

EBCA_ORT_INCLUDE_DIR and EBCA_JSON_INCLUDE_DIR name the folders of the headers (default: where
runtime/cpp/fetch_headers.sh puts them); EBCA_CPP_LIB a library that was built already; EBCA_CXXFLAGS adds compiler
options, such as sanitizers. With EBCA_CPP_REQUIRED set, what is missing fails the tests instead of skipping them.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
from helpers import building

import ebca
from ebca.runtime import native

CPP = Path(__file__).parents[2] / "runtime" / "cpp"


@pytest.fixture(scope="session")
def header_options() -> list[str]:
    """CMake options that name the folders of the headers."""
    fetched, options = CPP / "build" / "headers", []
    for name, folder, header in (
        ("EBCA_ORT_INCLUDE_DIR", fetched / "onnxruntime", "onnxruntime_c_api.h"),
        ("EBCA_JSON_INCLUDE_DIR", fetched / "json" / "usr" / "include", "nlohmann/json.hpp"),
    ):
        chosen = Path(os.environ.get(name, folder))
        if not (chosen / header).is_file():
            building.unavailable(f"there is no '{chosen / header}'; run runtime/cpp/fetch_headers.sh, or set {name}")
        options.append(f"-D{name}={chosen}")
    return options


@pytest.fixture(scope="session")
def cmake_build(tmp_path_factory: pytest.TempPathFactory, header_options: list[str]) -> Path:
    """A build folder of runtime/cpp with the library in it."""
    for tool in ("cmake", "ninja", "c++"):
        if shutil.which(tool) is None:
            building.unavailable(f"there is no {tool} to build the C++ library with")
    folder = building.shared_folder(tmp_path_factory) / "cpp"
    # A debug build takes half the time of an optimised one; the time is spent in ONNX Runtime anyway.
    options = ["-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS=-O0 {os.environ.get('EBCA_CXXFLAGS', '')}"]
    # Test processes that run side by side share the build; the first one makes it.
    with building.building(folder):
        building.run("cmake", "-G", "Ninja", "-S", str(CPP), "-B", str(folder), *options, *header_options)
        building.run("cmake", "--build", str(folder))
    return folder


@pytest.fixture(scope="session")
def library_file(request: pytest.FixtureRequest) -> Path:
    built = os.environ.get("EBCA_CPP_LIB")
    return Path(built) if built else request.getfixturevalue("cmake_build") / "libebca.so"


@pytest.fixture(scope="session")
def onnxruntime_file() -> Path:
    """The library in Python's package: the same build, so that results must be the same."""
    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not found:
        building.unavailable("this onnxruntime package has no libonnxruntime.so")
    return found[0]


@pytest.fixture(scope="session")
def library(library_file: Path, onnxruntime_file: Path) -> native.Library:
    return native.Library(library_file, onnxruntime_file)


@pytest.fixture(scope="session")
def shapes(library: native.Library, shapes_dir: Path) -> Iterator[native.Engine]:
    """The bundled engine, opened by the library."""
    engine = library.open(shapes_dir)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def python_shapes() -> Iterator[ebca.Engine]:
    """The bundled engine, opened by Python."""
    with ebca.load("shapes", backend="onnxruntime") as engine:
        yield engine
