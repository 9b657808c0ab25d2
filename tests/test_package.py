"""What the package imports at run time, and its public names."""

import os
import subprocess
import sys
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


def test_every_public_name_exists_and_is_documented() -> None:
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
    done = python("-c", program, *argv)
    assert not HEAVY & set(done.stderr.split())
    assert (tmp_path / "x.png").is_file()
