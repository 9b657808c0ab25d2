"""Schedulers look back over a few evaluations only: the recurrence that an engine directory stores, and its rows.

The latents after evaluation i depend on the last K latents and the last L noise predictions:

    x_i = sum_{k < K} a[i, k] x_{i-1-k} + sum_{k < L} b[i, k] e_{i-k}

x_{-1} is `start`; what would be before the first evaluation counts as zero. Samplers need each x_i as one sum over
`start` and all noise predictions so far, so that it is rounded once. `expand` gives the weights of that sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def expand(of_latents: NDArray[Any], of_noises: NDArray[Any]) -> NDArray[np.float64]:
    """The weights of start, e_0 .. e_i in every x_i.

    The C++ library does the same operations in the same order, so both get the same bits. Coefficients that overflow
    give values that are not finite.

    Args:
        of_latents: [m, K] float64, a above.
        of_noises: [m, L] float64, b above.

    Returns:
        [m (m + 3) / 2] float64, packed rows; row i has i + 2 values and starts at i (i + 3) / 2.
    """
    m = len(of_latents)
    packed = np.zeros(m * (m + 3) // 2)
    rows = [np.ones(1)]
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(m):
            begin = i * (i + 3) // 2
            row = packed[begin : begin + i + 2]
            for k, weight in enumerate(of_latents[i, : i + 1]):
                earlier = rows[i - k]
                row[: len(earlier)] += weight * earlier
            for k, weight in enumerate(of_noises[i, : i + 1]):
                row[i + 1 - k] += weight
            rows.append(row)
    return packed
