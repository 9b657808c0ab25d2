"""Schedulers look back over a few evaluations only: the recurrence that an engine directory stores, and its rows.

The latents after evaluation i depend on the last K latents, the last L noise predictions, and the last M draws of
noise:

    x_i = sum_{k < K} a[i, k] x_{i-1-k} + sum_{k < L} b[i, k] e_{i-k} + sum_{k < M} c[i, k] z_{i-k}

x_{-1} is `start`; what would be before the first evaluation counts as zero. z_i is standard normal noise that a
stochastic scheduler draws in evaluation i; M is 0 for other schedulers. Samplers need each x_i as one sum over `start`
and all noise predictions so far, so that it is rounded once. `expand` gives the weights of that sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Memory = tuple[int, int]
"""How many latents and noise predictions a step looks back at: K, L."""

# Weights below this, relative to the largest of their row, are rounding of the recurrence that was found.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Recurrence:
    """of_latents [m, K], of_noises [m, L] and of_fresh [m, M] float64: a, b and c above."""

    of_latents: NDArray[np.float64]
    of_noises: NDArray[np.float64]
    of_fresh: NDArray[np.float64]

    @property
    def memory(self) -> Memory:
        return self.of_latents.shape[1], self.of_noises.shape[1]

    @property
    def fresh(self) -> int:
        """M: how many draws of noise a step uses."""
        return self.of_fresh.shape[1]

    def starts_at(self, begin: int) -> bool:
        """Whether evaluation `begin` and those after it use only the latents before it, and what comes later."""
        for i in range(begin, len(self.of_latents)):
            back = i - begin
            used = self.of_latents[i], self.of_noises[i], self.of_fresh[i]
            old = self.of_latents[i, back + 1 :], self.of_noises[i, back + 1 :], self.of_fresh[i, back + 1 :]
            largest = max(float(np.abs(np.concatenate(used)).max()), 1.0)
            if np.abs(np.concatenate(old)).max(initial=0) > _NOTHING * largest:
                return False
        return True

    def after(self, begin: int) -> Recurrence:
        """The recurrence of evaluation `begin` and those after it; see `starts_at`."""
        return Recurrence(self.of_latents[begin:], self.of_noises[begin:], self.of_fresh[begin:])

    def widened(self, memory: Memory, fresh: int = 0) -> Recurrence:
        """The same recurrence with zeros for what a longer memory adds."""
        (latents, noises), (more_latents, more_noises) = self.memory, memory
        return Recurrence(
            np.pad(self.of_latents, ((0, 0), (0, more_latents - latents))),
            np.pad(self.of_noises, ((0, 0), (0, more_noises - noises))),
            np.pad(self.of_fresh, ((0, 0), (0, max(fresh - self.fresh, 0)))),
        )


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
