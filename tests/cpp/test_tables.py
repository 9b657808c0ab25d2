"""Both runtimes expand the scheduler tables of a directory to the same bits."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import building

from ebca.runtime.sampling.tables import SchedulerTable, load_table

SOURCES = [*building.DIRECTORY, "contract/utf8", "execution/arena", "sampling/schedulers"]
STEPS = (2, 3, 5, 15, 50, 199, 200)


@pytest.fixture(scope="module")
def probe(cmake_build: Path, header_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("probe") / "table_probe"
    building.link(program, [Path(__file__).with_name("table_probe.cpp")], SOURCES, cmake_build, header_options)
    return program


def values(table: SchedulerTable) -> list[np.ndarray]:
    return [np.array([table.init_noise_sigma]), table.timesteps, table.input_scale, table.coefficients]


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        *((name, 0) for name in ("pndm", "ddim", "ddim_inverse", "euler", "dpmpp_2m", "unipc")),
        ("ddim", 1),
        ("euler", 1),
    ],
)
def test_tables_have_the_bits_of_python_s(probe: Path, shapes_dir: Path, name: str, begin: int) -> None:
    section: dict[str, Any] = json.loads((shapes_dir / "manifest.json").read_text())["schedulers"]
    command = [probe, shapes_dir, name, str(begin), *map(str, STEPS)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    tables = [load_table(shapes_dir, section, name, steps) for steps in STEPS]
    expected = [value for table in tables for value in values(table.after(begin) if begin else table)]
    assert done.stdout == np.concatenate(expected).astype("<f8").tobytes()
