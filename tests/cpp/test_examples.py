"""The hosts in examples/cpp, built against the installed library as a user would."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import building
from PIL import Image

import ebca
from ebca.runtime import native

EXAMPLES = Path(__file__).parents[2] / "examples" / "cpp"
PROMPT = "a red circle and a blue square"


@pytest.fixture(scope="module")
def hosts(cmake_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("pkg-config") and subprocess.run(["pkg-config", "--exists", "libpng"], check=False).returncode:
        pytest.skip("there is no libpng to write images with; install libpng-dev")
    prefix, build = tmp_path_factory.mktemp("prefix"), tmp_path_factory.mktemp("hosts")
    building.run("cmake", "--install", cmake_build, "--prefix", prefix)
    building.run("cmake", "-G", "Ninja", "-S", EXAMPLES, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    building.run("cmake", "--build", build)
    return build


@pytest.fixture(scope="module")
def environment(onnxruntime_file: Path, shapes: native.Engine) -> dict[str, str]:
    """`shapes` is prepared by the time a host opens it."""
    return {**os.environ, "EBCA_ORT_LIB": str(onnxruntime_file)}


def test_the_cpp_host_makes_python_s_image(
    hosts: Path, environment: dict[str, str], shapes_dir: Path, python_shapes: ebca.Engine, tmp_path: Path
) -> None:
    file = tmp_path / "image.png"
    done = subprocess.run(
        [hosts / "paint", shapes_dir, PROMPT, file], env=environment, capture_output=True, text=True, check=True
    )
    assert "step 51 of 51" in done.stderr and f"wrote {file}" in done.stderr
    with python_shapes.session() as session:
        (expected,) = session.generate(PROMPT, seed=1, gamma_norm=0.003).images
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(expected))


def test_the_c_host_makes_python_s_edit(
    hosts: Path, environment: dict[str, str], shapes_dir: Path, python_shapes: ebca.Engine, tmp_path: Path
) -> None:
    file = tmp_path / "image.png"
    building.run(hosts / "edit", shapes_dir, "a red circle", "+a blue square", file, env=environment)
    with python_shapes.session() as session:
        edit = ebca.Edit("a blue square", direction=1, alpha=0.7)
        (expected,) = session.generate("a red circle", seed=1, edits=[edit]).images
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(expected))


def test_ctrl_c_stops_the_cpp_host(hosts: Path, environment: dict[str, str], shapes_dir: Path, tmp_path: Path) -> None:
    words = [hosts / "paint", shapes_dir, PROMPT, tmp_path / "image.png"]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while "step 2 of" not in said:
            said += process.stderr.read(1)
        process.send_signal(signal.SIGINT)
        said += process.stderr.read()
    assert process.returncode == 130 and "cancelled" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["paint", "DIR", "a cat", "x.png"], ["edit", "DIR", "a cat", "+a dog", "x.png"]])
def test_a_missing_engine_is_one_line(words: list[str], hosts: Path, environment: dict[str, str]) -> None:
    done = subprocess.run([hosts / words[0], *words[1:]], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"{words[0]}: ") and "DIR" in line
