"""The library under load: many threads on one engine, and the fuzz targets' seeds.

Short by default. EBCA_SLOW_TESTS=1 runs it as long as it takes to believe it, with sanitizers too; a build with them
takes minutes.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import building

from ebca.runtime import native

ROOT = Path(__file__).parents[2]
CPP = ROOT / "runtime" / "cpp"
SLOW = pytest.mark.skipif(not os.environ.get("EBCA_SLOW_TESTS"), reason="takes minutes; EBCA_SLOW_TESTS=1 runs it")
NOTHING = 77  # of sanitize.sh: the compiler has no sanitizers


@pytest.fixture(scope="module")
def stress(library_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("c++") is None:
        pytest.skip("there is no c++ to build the program with")
    program = tmp_path_factory.mktemp("stress") / "stress"
    options = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", f"-I{CPP / 'include'}", "-pthread"]
    library = building.link_options(library_file)
    building.run(*building.compiler(), *options, Path(__file__).with_name("stress.cpp"), *library, "-o", program)
    return program


def run(program: Path, engine: Path, onnxruntime: Path, *arguments: int) -> tuple[int, int, float, float]:
    """Images made, calls cancelled, and MiB after the first image and at the end."""
    environment = {**os.environ, "EBCA_ORT_LIB": str(onnxruntime)}
    said = building.run(program, engine, *map(str, arguments), env=environment)
    found = re.match(r"(\d+) images equal, (\d+) cancelled, .*; (\d+) MiB after the first, (\d+) at the end", said)
    assert found, said
    return int(found[1]), int(found[2]), float(found[3]), float(found[4])


def test_threads_make_the_images_of_one_thread(stress: Path, shapes_dir: Path, onnxruntime_file: Path) -> None:
    made, cancelled, _, _ = run(stress, shapes_dir, onnxruntime_file, 4, 4)
    assert made + cancelled == 16 and made > 0 and cancelled > 0


@SLOW
def test_eight_threads_with_fifty_images_each(stress: Path, shapes_dir: Path, onnxruntime_file: Path) -> None:
    made, cancelled, _, _ = run(stress, shapes_dir, onnxruntime_file, 8, 50)
    assert made + cancelled == 400 and made > 100 and cancelled > 100


@SLOW
def test_memory_stays_flat(library: native.Library, shapes: native.Engine) -> None:
    """Over 500 images of four kinds on one session."""
    session = shapes.session()

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    after = []
    for index in range(500):
        session.generate(
            "a red circle", steps=2, seed=index, gamma_attn=0.01 * (index % 2), guidance_scale=1 + index % 4
        )
        if index % 100 == 99:
            after.append(resident())
    session.close()
    print(f"MiB resident after 100, 200, ... images: {after}")
    assert after[-1] - after[0] < 4, after


@SLOW
@pytest.mark.parametrize("kind", ["address", "thread"])
def test_sanitizers_find_nothing(
    kind: str, shapes_dir: Path, onnxruntime_file: Path, header_options: list[str], tmp_path: Path
) -> None:
    folders = dict(option.removeprefix("-D").split("=", 1) for option in header_options)
    environment = {**os.environ, **folders, "EBCA_ORT_LIB": str(onnxruntime_file)}
    script = [str(CPP / "sanitize.sh"), kind, str(shapes_dir), "8", "10", str(tmp_path)]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == NOTHING:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    assert "images equal" in done.stdout


@pytest.mark.parametrize(
    ("target", "sources"),
    [
        ("images", ["images/inputs", "images/regions", "images/resize", *building.CONTRACT]),
        ("manifest", ["execution/arena", *building.CONTRACT]),
        ("table", [*building.DIRECTORY, "sampling/schedulers"]),
    ],
)
def test_fuzz_targets_take_their_seeds(
    target: str, sources: list[str], cmake_build: Path, header_options: list[str], tmp_path: Path
) -> None:
    """And a second of mutations of them; the tokenizer's target is in test_tokenizer.py."""
    fuzz, program = CPP / "fuzz", tmp_path / "fuzz"
    mains = [fuzz / f"fuzz_{target}.cpp", fuzz / "standalone.cpp"]
    building.link(program, mains, sources, cmake_build, header_options)
    seeds = sorted((fuzz / "seeds" / target).iterdir())
    assert seeds
    said = building.run(program, "-seconds=1", *seeds, cwd=tmp_path)
    assert int(said.split()[0]) > len(seeds)
