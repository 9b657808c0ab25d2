"""Inputs for the tiny UNet, and changed copies of its engine directory."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from helpers import manifests

from ebca.engines.contract.accuracy import relative_l2

relative = relative_l2

TOKENS, WIDTH = 77, 32


def call_inputs(
    rows: int = 2, contexts: int = 1, size: tuple[int, int] = (8, 8), channels: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(sample [B,C,h,w], contexts [B,S,T,D]) for one evaluation of the tiny UNet."""
    rng = np.random.default_rng(seed)
    sample = rng.standard_normal((rows, channels, *size), np.float32)
    return sample, rng.standard_normal((rows, contexts, TOKENS, WIDTH), np.float32)


def changed_copy(engine: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of an engine directory with a manifest modified by `change`."""
    shutil.copytree(engine, folder)
    return manifests.edit(folder, change)
