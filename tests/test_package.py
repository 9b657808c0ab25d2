"""What the package imports, how fast, and which way its folders depend on each other."""

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("engines", "plugins", "runtime", "export", "bench")
HEAVY = {"torch", "diffusers", "transformers", "onnx", "onnxscript"}


def python(*argv: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=env, timeout=timeout, check=True)


# --- at run time


def test_importing_ebca_leaves_the_export_libraries_alone() -> None:
    out = python("-c", "import sys, ebca; print(*sys.modules)").stdout
    assert not HEAVY & set(out.split())


def test_importing_ebca_takes_three_tenths_of_a_second_at_most() -> None:
    program = "import time; t = time.perf_counter(); import ebca; print(time.perf_counter() - t)"
    # The best of several: what else the machine does must not count.
    assert min(float(python("-c", program).stdout) for _ in range(5)) <= 0.3


def test_every_public_name_is_there_and_documented() -> None:
    import ebca

    assert sorted(ebca.__all__) == ebca.__all__
    for name in ebca.__all__:
        assert getattr(ebca, name).__doc__, name


def test_the_version_is_that_of_the_project() -> None:
    import tomllib

    import ebca

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert ebca.__version__ == project["version"]


@pytest.fixture(scope="module")
def prepared_engine(request: pytest.FixtureRequest) -> Path:
    pytest.importorskip("torch")
    import ebca

    folder: Path = request.getfixturevalue("tiny_engine_dir")
    ebca.load(folder).close()
    return folder


def test_ebca_run_takes_three_seconds_and_no_export_library(prepared_engine: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from ebca.runtime.cli.run import main; code = main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    argv = ["--engine", str(prepared_engine), "--prompt", "a cat", "--seed", "1", "--output", str(tmp_path / "x.png")]
    took = []
    for _ in range(3):
        began = time.perf_counter()
        done = python("-c", program, *argv)
        took.append(time.perf_counter() - began)
        assert not HEAVY & set(done.stderr.split())
    assert (tmp_path / "x.png").is_file()
    assert min(took) <= 3.0


# --- in the source


def modules(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, in functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def uses(path: Path, name: str) -> bool:
    return any(i == name or i.startswith(name + ".") for i in imports(path))


# What each folder may import of the package beside itself and ebca.errors. The command line of the export shares the
# console's manners with the others, and opens what it has made.
MAY_IMPORT = {
    "engines": (),
    "plugins": (),
    "runtime": ("ebca.engines", "ebca.plugins"),
    "export": ("ebca.engines", "ebca.plugins"),
}
EXCEPTIONS = {"export/cli.py": ("ebca.runtime",)}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_dependencies_point_one_way(folder: str) -> None:
    checked = 0
    for path in modules(folder):
        name = path.relative_to(ROOT).as_posix()
        allowed = (*MAY_IMPORT[folder], *EXCEPTIONS.get(name, ()), f"ebca.{folder}", "ebca.errors")
        for other in (f"ebca.{f}" for f in FOLDERS):
            assert other in allowed or not uses(path, other), f"{name} imports {other}"
        checked += 1
    assert checked > 2


@pytest.mark.parametrize("folder", ["engines", "plugins", "runtime"])
def test_pytorch_and_onnx_stay_in_the_export(folder: str) -> None:
    for path in modules(folder):
        name = path.relative_to(ROOT).as_posix()
        allowed = {"onnx"} if name == "plugins/energy_attention/onnx_model.py" else set()
        for library in HEAVY - allowed:
            assert not uses(path, library), f"{name} imports {library}"


@pytest.mark.parametrize("folder", [*FOLDERS, "tests", "src"])
def test_folders_are_imported_as_parts_of_the_package(folder: str) -> None:
    for path in modules(folder):
        for bare in FOLDERS:
            assert not uses(path, bare), f"{path.relative_to(ROOT)} imports {bare} instead of ebca.{bare}"


def test_nothing_is_unpickled() -> None:
    for folder in FOLDERS:
        for path in modules(folder):
            text = path.read_text(encoding="utf-8")
            name = path.relative_to(ROOT).as_posix()
            assert not uses(path, "pickle"), name
            assert "allow_pickle=True" not in text and "torch.load(" not in text, name
