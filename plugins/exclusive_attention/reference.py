"""The equations of README.md in float64, for one row, kept simple rather than fast."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebca.plugins.exclusive_attention.tables import APART, WINDOW

Array = NDArray[np.float64]


class Exclusion(NamedTuple):
    """Averages M and bias b, both [G, h, w], and the centres (y, x) as [G, 2]."""

    averages: Array
    bias: Array
    centres: NDArray[np.int64]


def exclusive_bias(
    maps: ArrayLike,
    averages: ArrayLike | None,
    *,
    away: float,
    boost: float,
    window: float = WINDOW,
    apart: float = APART,
    places: Mapping[int, ArrayLike] = MappingProxyType({}),
) -> Exclusion:
    """The next bias of a row with G subjects.

    maps [L, G, h, w] of the source layers; averages [G, h, w] after the evaluation before, None at the first one.
    away, boost: the strengths lambda and mu. window, apart: in sides of the grid.
    places: w [h, w] of the groups whose place is given; their centres are (-1, -1).
    """
    M = None if averages is None else np.asarray(averages, np.float64)
    for m in np.asarray(maps, np.float64):
        M = _smooth(m) if M is None else 0.5 * M + 0.5 * _smooth(m)
    assert M is not None
    G, h, w = M.shape
    side = min(h, w)
    y, x = np.mgrid[:h, :w]

    given = {g: np.asarray(place, np.float64) for g, place in places.items()}
    worth, centres, placed = M.copy(), np.full((G, 2), -1, np.int64), list(given)
    for place in given.values():
        worth[:, place > 0.5] = -1
    worth[placed] = -2
    for _ in range(G - len(given)):
        g, i, j = (int(index) for index in np.unravel_index(worth.argmax(), worth.shape))
        centres[g] = i, j
        placed.append(g)
        # Less than any map: a place near a centre; and less than that: the places of a subject that has one.
        worth[:, (y - i) ** 2 + (x - j) ** 2 < (apart * side) ** 2] = -1
        worth[placed] = -2

    squared = np.stack([(y - i) ** 2 + (x - j) ** 2 for i, j in centres])
    inside = np.exp(-squared / (2 * (window * side) ** 2))
    for g, place in given.items():
        inside[g] = place
    p = M.max(axis=(1, 2), keepdims=True)
    weakness = (p.max() - p) / p.max() if p.max() > 0 else np.zeros_like(p)
    bias = boost * weakness - away * (1 - inside) if G > 1 or given else np.zeros_like(M)
    return Exclusion(M, bias, centres)


def _smooth(maps: Array) -> Array:
    """(1 2 1) x (1 2 1) / 16, with the edges repeated."""
    h, w = maps.shape[1:]
    pad = np.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="edge")
    total = np.zeros_like(maps)
    for i, j in np.ndindex(3, 3):
        total += (1, 2, 1)[i] * (1, 2, 1)[j] / 16 * pad[:, i : i + h, j : j + w]
    return total
