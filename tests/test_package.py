"""What the package imports when it runs, its public names, and what its wheel holds."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "diffusers", "transformers", "onnx", "onnxscript"}


def python(*argv: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=env, timeout=timeout, check=True)


# --- at run time


def test_importing_ebca_imports_no_export_library() -> None:
    out = python("-c", "import sys, ebca; print(*sys.modules)").stdout
    assert not HEAVY & set(out.split())


def test_every_public_name_is_there_and_documented() -> None:
    import ebca

    assert sorted(ebca.__all__) == ebca.__all__
    for name in ebca.__all__:
        assert getattr(ebca, name).__doc__, name


def test_the_version_equals_the_projects() -> None:
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


def test_ebca_run_imports_no_export_library(prepared_engine: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from ebca.runtime.cli.run import main; code = main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    argv = ["--engine", str(prepared_engine), "--prompt", "a cat", "--seed", "1", "--output", str(tmp_path / "x.png")]
    assert not HEAVY & set(python("-c", program, *argv).stderr.split())
    assert (tmp_path / "x.png").is_file()


def test_the_wheel_holds_the_package_without_results_and_without_what_needs_the_source_tree(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core")
    # The build reads pyproject.toml and the folders of the package, so it needs no isolation and no network.
    python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), str(ROOT), timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for needed in ("__init__.py", "bench/latency/cli.py", "engines/bundled/shapes/manifest.json", "runtime/session.py"):
        assert f"ebca/{needed}" in names
    unwanted = ("ebca/bench/results", "ebca/bench/gpu_check", "ebca/runtime/cpp", "ebca/tests", "ebca/examples")
    assert not [name for name in names if name.startswith(unwanted) or "__pycache__" in name]
