"""What depends on the grid alone: computed once, so that no exponential is left for the work between evaluations."""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebca.errors import ParameterError

WINDOW: Final = 0.15
"""Standard deviation of a subject's window, in sides of the grid."""

APART: Final = 0.25
"""Smallest distance between the centres of two subjects, in sides of the grid."""


class Tables(NamedTuple):
    """By the distance (|dy|, |dx|) from a centre in cells, both [height, width]."""

    near: NDArray[np.int32]  # 1: no other subject has its centre there
    outside: NDArray[np.float32]  # 1 - window


def tables(height: int, width: int, *, window: float = WINDOW, apart: float = APART) -> Tables:
    """Tables of a grid of height x width cells, computed in float64 and rounded once.

    Raises ParameterError for a side below 1, a window that is not positive, or a negative distance.
    """
    if height < 1 or width < 1:
        raise ParameterError(f"the grid of the maps is {height}x{width}", "both sides must be at least 1")
    if not 0 < window < math.inf:
        raise ParameterError(f"the window of a subject is {window} sides wide", "pass a positive number")
    if not 0 <= apart < math.inf:
        raise ParameterError(f"subjects are {apart} sides apart", "pass 0 or more")
    side = min(height, width)
    y, x = np.mgrid[:height, :width]
    squared = y * y + x * x
    near = squared < (apart * side) ** 2
    outside = 1.0 - np.exp(-squared / (2.0 * (window * side) ** 2))
    return Tables(near.astype(np.int32), outside.astype(np.float32))
