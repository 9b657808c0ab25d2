"""The library as hosts get it: installed and moved, shared and static, as a part of another project, as one source."""

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers import building

from ebca.runtime import native

CPP = Path(__file__).parents[2] / "runtime" / "cpp"
HOST = Path(__file__).parent / "abi" / "host.c"
GUEST = Path(__file__).parent / "hosts" / "guest.cpp"
SAID = "text-to-image 64x64 steps 3 seed 3\n"
SLOW = pytest.mark.skipif(not os.environ.get("EBCA_SLOW_TESTS"), reason="takes minutes; EBCA_SLOW_TESTS=1 runs it")


@pytest.fixture(scope="module")
def moved(cmake_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the prefix was moved after the installation."""
    folder = tmp_path_factory.mktemp("prefix")
    building.run("cmake", "--install", cmake_build, "--prefix", folder / "first")
    (folder / "first").rename(folder / "moved here")
    return folder / "moved here"


@pytest.fixture(scope="module")
def environment(onnxruntime_file: Path, shapes: native.Engine) -> dict[str, str]:
    """`shapes` is prepared by the time a host opens it."""
    return {**os.environ, "EBCA_ORT_LIB": str(onnxruntime_file)}


def needed(program: Path) -> str:
    return building.run("readelf", "-d", program)


@pytest.mark.parametrize("package", ["ebca", "ebca-static"])
def test_a_c_host_through_pkg_config(
    package: str, moved: Path, environment: dict[str, str], shapes_dir: Path, tmp_path: Path
) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("there is no pkg-config")
    # pkg-config writes a space as "\ ", which only a shell reads.
    prefix = tmp_path / "prefix"
    prefix.symlink_to(moved)
    found = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    assert building.run("pkg-config", "--modversion", package, env=found) == building.run(
        "pkg-config", "--modversion", "ebca", env=found
    )
    flags = building.run("pkg-config", "--cflags", "--libs", package, env=found).split()
    building.run("cc", "-std=c99", HOST, *flags, f"-Wl,-rpath,{prefix / 'lib'}", "-o", tmp_path / "host")
    assert building.run(tmp_path / "host", shapes_dir, env=environment) == SAID
    assert ("libebca.so" in needed(tmp_path / "host")) == (package == "ebca")
    private = building.run("pkg-config", "--static", "--libs", "ebca", env=found).split()
    assert {"-lebca", "-lz", "-ldl"} <= set(private)


PROJECT = """
cmake_minimum_required(VERSION 3.20)
project(host LANGUAGES C CXX)
find_package(ebca 0.1 REQUIRED COMPONENTS shared static)
add_executable(with_shared "{host}")
target_link_libraries(with_shared PRIVATE ebca::ebca)
add_executable(with_static "{host}")
target_link_libraries(with_static PRIVATE ebca::static)
"""


def test_a_c_host_through_cmake(moved: Path, environment: dict[str, str], shapes_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(PROJECT.format(host=HOST))
    build = tmp_path / "build"
    building.run("cmake", "-G", "Ninja", "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={moved}")
    building.run("cmake", "--build", build)
    for name in ("with_shared", "with_static"):
        assert building.run(build / name, shapes_dir, env=environment) == SAID
        assert ("libebca.so" in needed(build / name)) == (name == "with_shared")
    # Nothing of the library is exported again by what it is linked into.
    assert " ebca_" not in building.run("nm", "--dynamic", "--defined-only", build / "with_static")


def test_static_without_zlib_is_told(moved: Path, tmp_path: Path) -> None:
    options = [f"-DCMAKE_PREFIX_PATH={moved}", "-DCMAKE_DISABLE_FIND_PACKAGE_ZLIB=ON"]
    (tmp_path / "CMakeLists.txt").write_text(PROJECT.format(host=HOST))
    with pytest.raises(AssertionError, match="ebca::static needs zlib"):
        building.run("cmake", "-G", "Ninja", "-S", tmp_path, "-B", tmp_path / "build", *options)
    shared = PROJECT.partition("add_executable(with_static")[0].replace(" COMPONENTS shared static", "")
    (tmp_path / "CMakeLists.txt").write_text(shared.format(host=HOST))
    building.run("cmake", "-G", "Ninja", "-S", tmp_path, "-B", tmp_path / "build", *options)


def test_nothing_installed_names_a_folder_of_this_machine(moved: Path, cmake_build: Path) -> None:
    texts = [path for path in moved.rglob("*") if path.suffix in (".cmake", ".pc", ".h", ".hpp")]
    assert len(texts) > 8
    for path in texts:
        for folder in (cmake_build, CPP, moved.parent):
            assert str(folder) not in path.read_text(), path


# ---- within another project ------------------------------------------------------------------------------------------

# With targets that are called as the library's parts might be, and without a build type.
PARENT = """
cmake_minimum_required(VERSION 3.20)
project(parent LANGUAGES C CXX)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
foreach(name core api static tests gpu_probe fake_cuda tokenizer)
  add_custom_target(${{name}})
endforeach()
include(FetchContent)
FetchContent_Declare(ebca SOURCE_DIR "{source}")
FetchContent_MakeAvailable(ebca)
add_executable(with_shared "{host}")
target_link_libraries(with_shared PRIVATE ebca::ebca)
add_executable(with_static "{host}")
target_link_libraries(with_static PRIVATE ebca::static)
install(TARGETS with_static)
if(CMAKE_BUILD_TYPE OR CMAKE_CXX_STANDARD)
  message(FATAL_ERROR "the library chose for its parent")
endif()
"""


@pytest.fixture
def parent(header_options: list[str], tmp_path: Path) -> Path:
    """The build folder of a project that has the library as a part of it."""
    (tmp_path / "CMakeLists.txt").write_text(PARENT.format(source=CPP, host=HOST))
    building.run("cmake", "-G", "Ninja", "-S", tmp_path, "-B", tmp_path / "build", *header_options)
    return tmp_path / "build"


def test_it_is_a_part_of_another_project(parent: Path) -> None:
    commands = {
        Path(one["file"]).name: one["command"] for one in json.loads((parent / "compile_commands.json").read_text())
    }
    assert "-ffp-contract=off" in commands["session.cpp"]
    for flag in ("-Wall", "-ffp-contract", "-fvisibility", "onnxruntime", "std="):
        assert flag not in commands["host.c"]
    rules = "".join(path.read_text() for path in parent.rglob("cmake_install.cmake"))
    assert "with_static" in rules and "ebca.h" not in rules and "libebca" not in rules


@SLOW
def test_a_host_is_built_with_it(parent: Path, environment: dict[str, str], shapes_dir: Path) -> None:
    building.run("cmake", "--build", parent, "--target", "with_shared", "with_static")
    for name in ("with_shared", "with_static"):
        assert building.run(parent / name, shapes_dir, env=environment) == SAID


def test_parts_are_left_out_of_both_libraries(header_options: list[str], tmp_path: Path) -> None:
    options = ["-DEBCA_TOKENIZER=OFF", "-DEBCA_RESIZE=OFF", *header_options]
    building.run("cmake", "-G", "Ninja", "-S", CPP, "-B", tmp_path, *options)
    for library in ("libebca.so", "libebca.a"):
        inputs = building.run("ninja", "-C", tmp_path, "-t", "inputs", library)
        assert "tokenizer/absent.cpp.o" in inputs and "resize_absent.cpp.o" in inputs
        assert "tokenizer/tokenizer.cpp.o" not in inputs and "resize.cpp.o" not in inputs


# ---- beside the host's own classes -----------------------------------------------------------------------------------


def test_a_host_with_classes_of_the_same_names(
    cmake_build: Path, environment: dict[str, str], shapes_dir: Path, tmp_path: Path
) -> None:
    """And what its callbacks throw is neither taken for the library's nor lost."""
    words = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-DEBCA_STATIC", f"-I{CPP / 'include'}"]
    building.run(
        *building.compiler(), *words, GUEST, cmake_build / "libebca.a", "-lz", "-ldl", "-o", tmp_path / "guest"
    )
    assert building.run(tmp_path / "guest", shapes_dir, tmp_path / "cache", env=environment) == "ok\n"


@pytest.fixture
def one_source(header_options: list[str], tmp_path: Path) -> list[str | Path]:
    """A command that compiles all sources and a host as one translation unit."""
    left_out = {"absent.cpp", "resize_absent.cpp", "macos.cpp", "windows.cpp"}
    sources = sorted(path for path in (CPP / "src").rglob("*.cpp") if path.name not in left_out)
    assert len(sources) > 60
    (tmp_path / "one.cpp").write_text("".join(f'#include "{path}"\n' for path in [*sources, GUEST]))
    includes = [f"-isystem{option.partition('=')[2]}" for option in header_options]
    words = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-DEBCA_STATIC"]
    return [*words, f"-I{CPP / 'src'}", f"-I{CPP / 'include'}", *includes, tmp_path / "one.cpp"]


def test_the_sources_are_one_translation_unit(one_source: list[str | Path]) -> None:
    building.run("c++", "-fsyntax-only", *one_source)


@SLOW
def test_one_translation_unit_runs(
    one_source: list[str | Path], environment: dict[str, str], shapes_dir: Path, tmp_path: Path
) -> None:
    building.run("c++", *one_source, "-lz", "-ldl", "-o", tmp_path / "one")
    assert building.run(tmp_path / "one", shapes_dir, tmp_path / "cache", env=environment) == "ok\n"
