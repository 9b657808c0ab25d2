"""The kernel in numpy, on arrays that are modified in place.

The order of the operations is part of the contract: with float32 throughout, another implementation has the same bits.
Factors of the averages are powers of two, so a compiler that fuses products and sums changes nothing there, nor in the
choice of the centres; in the bias it changes the last bit.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_HALF = np.float32(0.5)
_TWO = np.float32(2.0)
_SIXTEENTH = np.float32(0.0625)


def exclude(a: Mapping[str, NDArray[Any]]) -> None:
    """Bias of the next evaluation from the maps of evaluation step[0]. Tensors as in `TENSORS`."""
    height, width = a["near"].shape
    layers, rows, groups, _ = a["maps"].shape
    grid = rows, groups, height, width
    averages = a["averages"].reshape(grid)
    begins = a["step"][0] == 0
    for layer in range(layers):
        smoothed = _smoothed(a["maps"][layer].reshape(grid))
        averages[...] = smoothed if begins and layer == 0 else (averages + smoothed) * _HALF
    bias = a["bias"][:, 0]
    bias[...] = 0.0
    beyond = a["beyond"].reshape(grid)
    for row, count in enumerate(int(n) for n in a["subjects"]):
        fixed = a["fixed"][row, :count] != 0
        if count >= 2 or fixed.any():
            strengths = a["strengths"][int(a["step"][0])]
            made = _bias(averages[row, :count], a["near"], a["outside"], strengths, fixed, beyond[row, :count])
            bias[row, :count] = made.reshape(count, -1)


def begin(a: Mapping[str, NDArray[Any]], away: float) -> None:
    """Bias of evaluation 0, before there are maps: what keeps subjects in the places that are given.

    away: lambda of evaluation 0. Tensors as in `TENSORS`; those that `exclude` writes are set to zero first.
    """
    a["averages"][...] = 0.0
    a["bias"][...] = 0.0
    groups = np.arange(a["fixed"].shape[1])
    given = (a["fixed"] != 0) & (groups < a["subjects"][:, None])
    a["bias"][:, 0][given] = -np.float32(away) * a["beyond"][given]


def _smoothed(maps: Array) -> Array:
    """[..., h, w]: (left + 2 middle) + right, then (upper + 2 middle) + lower, then / 16. Edges are repeated."""
    for axis in (-1, -2):
        last = maps.shape[axis] - 1
        before = maps.take([0, *range(last)], axis)
        after = maps.take([*range(1, last + 1), last], axis)
        maps = (before + _TWO * maps) + after
    return maps * _SIXTEENTH


def _bias(
    averages: Array,
    near: NDArray[np.int32],
    outside: Array,
    strengths: Array,
    fixed: NDArray[np.bool_],
    beyond: Array,
) -> Array:
    """[G, h, w] of a row with G subjects, of which `fixed` [G] have the places that `beyond` [G, h, w] says."""
    count, height, width = averages.shape
    away, boost = strengths
    peaks = averages.max(axis=(1, 2))
    strongest = peaks.max()
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    worth = averages.copy()
    placed = [int(g) for g in np.flatnonzero(fixed)]
    bias = np.empty_like(averages)
    for g in placed:
        worth[:, beyond[g] < _HALF] = -1.0
        bias[g] = boost * _weakness(peaks[g], strongest) - away * beyond[g]
    worth[placed] = -2.0
    for _ in range(count - len(placed)):
        # The first of equal values: the lowest group, then the lowest position.
        g, i, j = (int(index) for index in np.unravel_index(worth.argmax(), worth.shape))
        distance = np.abs(y - i), np.abs(x - j)
        placed.append(g)
        worth[:, near[distance] != 0] = -1.0
        worth[placed] = -2.0
        bias[g] = boost * _weakness(peaks[g], strongest) - away * outside[distance]
    return bias


def _weakness(peak: np.float32, strongest: np.float32) -> np.float32:
    return (strongest - peak) / strongest if strongest > 0 else np.float32(0.0)
