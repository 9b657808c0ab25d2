"""Exclusive attention in C++ has the bits of the numpy version: the same float32 operations in the same order."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import building

from ebca.plugins.exclusive_attention import TENSORS, tables, windows

Array = np.ndarray


@pytest.fixture(scope="module")
def probe(cmake_build: Path, header_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("probe") / "exclusion_probe"
    mains, sources = [Path(__file__).with_name("exclusion_probe.cpp")], ["sampling/exclusive_attention"]
    building.link(program, mains, sources, cmake_build, header_options)
    return program


def case(rng: np.random.Generator) -> dict[str, Array]:
    """Tensors of any sizes; many maps have equal values, so that ties count."""
    m, layers, rows, contexts, groups = (int(rng.integers(1, top)) for top in (4, 4, 4, 3, 6))
    height, width = (int(rng.integers(1, 14)) for _ in range(2))
    cells, step = height * width, int(rng.integers(0, m))
    maps = rng.random((layers, rows, groups, cells)).astype(np.float32)
    if rng.random() < 0.4:
        maps = np.round(maps * 2) / np.float32(2)
    if rng.random() < 0.1:
        maps[:] = 0
    shares = rng.choice(np.float32([0, 0.25, 0.5, 0.75, 1]), (rows, groups, cells))
    near, outside = tables(height, width, window=float(rng.choice([0.01, 0.15, 0.4])))
    return {
        "step": np.full(1, step, np.int32),
        "subjects": rng.integers(0, groups + 1, rows).astype(np.int32),
        "strengths": (rng.random((m, 2)) * 4).astype(np.float32),
        "fixed": (rng.random((rows, groups)) < 0.3).astype(np.int32),
        "beyond": shares,
        "near": near,
        "outside": outside,
        "maps": maps,
        "averages": rng.random((rows, groups, cells)).astype(np.float32),
        "bias": rng.standard_normal((rows, contexts, groups, cells)).astype(np.float32),
    }


def packed(state: Mapping[str, Array], gap: int, away: float | None) -> bytes:
    """In the form of the probe, with `gap` elements between the maps of layers."""
    layers, rows, groups, cells = state["maps"].shape
    stride = rows * groups * cells + gap
    spread = np.full((layers, stride), np.nan, np.float32)
    spread[:, : stride - gap] = state["maps"].reshape(layers, -1)
    contexts, grid = state["bias"].shape[1], state["near"].shape
    head = [away is not None, away or 0, len(state["strengths"]), layers, stride, rows, contexts, groups, *grid]
    arrays: list[Any] = [np.float64(head)]
    arrays += [spread if name == "maps" else state[name] for name in TENSORS]
    return b"".join(array.tobytes() for array in arrays)


def test_every_bit_is_numpy_s(probe: Path) -> None:
    rng = np.random.default_rng(0)
    given, expected, acted = [], [], 0
    for index in range(400):
        state = case(rng)
        away = float(np.float32(rng.random() * 3)) if index % 5 == 0 else None
        given.append(packed(state, int(rng.integers(0, 4)), away))
        if away is None:
            windows.exclude(state)
        else:
            windows.begin(state, away)
        expected += [state["averages"], state["bias"]]
        acted += bool(state["bias"][:, 0].any())
    made = subprocess.run([probe], input=b"".join(given), capture_output=True, check=True).stdout
    assert made == b"".join(array.tobytes() for array in expected)
    assert acted > 200


def test_tables_are_numpy_s(probe: Path) -> None:
    sizes = (0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 7.77, 10.0)
    for height, width in ((16, 16), (12, 20), (32, 32), (1, 7)):
        command = [str(part) for part in (probe, height, width, *sizes)]
        made = subprocess.run(command, capture_output=True, check=True).stdout
        expected = b"".join(b"".join(t.tobytes() for t in tables(height, width, window=window)) for window in sizes)
        assert made == expected
