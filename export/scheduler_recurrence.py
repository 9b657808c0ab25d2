"""From the rows of a scheduler to the recurrence that an engine directory stores.

The rows come from diffusers, see `ebca.export.scheduler_tables`. A scheduler's step uses the latents that it is given
and what the scheduler remembers: earlier noise predictions, or latents that it has corrected (UniPC). What it remembers
is a sum of earlier latents and noise predictions, so a window of those says the same:

    x_i = sum_{k < K} a[i, k] x_{i-1-k} + sum_{k < L} b[i, k] e_{i-k}

K and L are found by trying. Nothing here knows a scheduler's formulas, and no recurrence is kept whose expanded rows
are not those of diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebca.engines.contract import limits
from ebca.runtime.sampling.recurrence import expand

Memory = tuple[int, int]
"""How many latents and noise predictions a step looks back at: K, L."""

# Largest error of a row relative to its norm. Recurrences that fit have rounding, 1e-14 or less; those with too short a
# memory 1e-5 or more. A noise prediction is float32 and comes with an error of 6e-8, so this one is never seen.
TOLERANCE = 1e-12

# Directions of the last latents that are weaker than this, relative to the strongest, are rounding of float64.
_RANK = 1e-13


@dataclass(frozen=True)
class Recurrence:
    """of_latents [m, K] and of_noises [m, L] float64: a and b above."""

    of_latents: NDArray[np.float64]
    of_noises: NDArray[np.float64]

    @property
    def memory(self) -> Memory:
        return self.of_latents.shape[1], self.of_noises.shape[1]

    def widened(self, memory: Memory) -> Recurrence:
        """The same recurrence with zeros for what a longer memory adds."""
        (latents, noises), (more_latents, more_noises) = self.memory, memory
        return Recurrence(
            np.pad(self.of_latents, ((0, 0), (0, more_latents - latents))),
            np.pad(self.of_noises, ((0, 0), (0, more_noises - noises))),
        )


def find(rows: NDArray[np.float64], memory: Memory = (1, 1)) -> Recurrence | None:
    """The recurrence with the shortest memory, not shorter than `memory`, that gives the rows; None if there is none.

    Args:
        rows: [m + 1, m + 1] float64: weights of start, e_0 .. e_{m-1} in x_{-1} .. x_{m-1}.
    """
    for candidate in _memories(memory):
        fitted = _fit(rows, candidate)
        if _error(fitted, rows) <= TOLERANCE:
            return fitted
    return None


def _memories(least: Memory) -> Iterator[Memory]:
    """From `least` on: those with the fewest coefficients first, and of these the one with the fewest latents."""
    for size in range(sum(least), limits.TABLE_LATENTS + limits.TABLE_NOISES + 1):
        for latents in range(least[0], limits.TABLE_LATENTS + 1):
            if least[1] <= size - latents <= limits.TABLE_NOISES:
                yield latents, size - latents


def _fit(rows: NDArray[np.float64], memory: Memory) -> Recurrence:
    """Least squares. The weights of latents alone must explain start and the noise predictions before the window; what
    they leave of those inside it are the weights of noise predictions."""
    latents, noises = memory
    m = len(rows) - 1
    i = np.arange(m)[:, None]
    behind = i - np.arange(latents)
    earlier = rows[np.maximum(behind, 0)] * (behind >= 0)[..., None]  # [m, K, m + 1]
    outside = np.arange(m + 1) < np.maximum(1, i + 2 - noises)  # [m, m + 1]
    known = np.linalg.pinv(earlier * outside[:, None], rcond=_RANK)  # [m, m + 1, K]
    of_latents = np.einsum("ij,ijk->ik", rows[1:] * outside, known)
    # Once more for what rounding has left: the last latents are close to each other.
    rest = rows[1:] - np.einsum("ik,ikj->ij", of_latents, earlier)
    of_latents += np.einsum("ij,ijk->ik", rest * outside, known)
    rest = rows[1:] - np.einsum("ik,ikj->ij", of_latents, earlier)
    column = i + 1 - np.arange(noises)
    of_noises = np.where(column >= 1, np.take_along_axis(rest, np.maximum(column, 0), axis=1), 0.0)
    return Recurrence(of_latents, of_noises)


def _error(recurrence: Recurrence, rows: NDArray[np.float64]) -> float:
    """The largest error of an expanded row, relative to the row's norm."""
    m = len(rows) - 1
    got = np.zeros_like(rows[1:])
    got[np.tril_indices(m, 1, m + 1)] = expand(recurrence.of_latents, recurrence.of_noises)
    norms = np.linalg.norm(rows[1:], axis=1)
    errors = np.linalg.norm(got - rows[1:], axis=1)
    # A row of zeros has to be one of zeros.
    relative = np.divide(errors, norms, out=np.where(errors > 0, np.inf, 0.0), where=norms > 0)
    return float(np.nan_to_num(relative, nan=np.inf).max())
