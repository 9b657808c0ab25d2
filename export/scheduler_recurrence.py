"""From the rows of a scheduler to the recurrence that an engine directory stores.

The rows come from diffusers, see `ebca.export.scheduler_tables`. A scheduler's step uses the latents that it is given
and what the scheduler remembers: earlier noise predictions, or latents that it has corrected (UniPC). What it remembers
is a sum of earlier latents and noise predictions, so a window of those says the same:

    x_i = sum_{k < K} a[i, k] x_{i-1-k} + sum_{k < L} b[i, k] e_{i-k} + sum_{k < M} c[i, k] z_{i-k}

z_i is the noise that a stochastic scheduler draws in evaluation i; M is 0 for others. K, L and M are found
by trying. Nothing here knows a scheduler's formulas, and no recurrence is kept whose expanded rows are not those of
diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ebca.engines.contract import limits
from ebca.runtime.sampling.recurrence import Memory, Recurrence, expand

# Largest error of a row relative to its norm. Recurrences that fit have rounding, 1e-14 or less; those with too short a
# memory 1e-5 or more. A noise prediction is float32 and comes with an error of 6e-8, so this one is never seen.
TOLERANCE = 1e-12

# Directions of the last latents that are weaker than this, relative to the strongest, are rounding of float64.
_RANK = 1e-13


# Weights of fresh noise that are smaller than this are rounding: noise has variance 1, and latents at least about that.
_NO_NOISE = 1e-13


def find(
    rows: NDArray[np.float64], memory: Memory = (1, 1), fresh: NDArray[np.float64] | None = None
) -> Recurrence | None:
    """The recurrence with the shortest memory, not shorter than `memory`, that gives the rows; None if there is none.

    Args:
        rows: [m + 1, m + 1] float64: weights of start, e_0 .. e_{m-1} in x_{-1} .. x_{m-1}.
        fresh: [m + 1, m] float64: weights of z_0 .. z_{m-1} there; None: nothing is drawn.
    """
    if fresh is None:
        fresh = np.zeros((len(rows), 0))
    for candidate in _memories(memory):
        fitted = _fit(rows, fresh, candidate)
        if _error(fitted, rows, fresh) <= TOLERANCE:
            return fitted
    return None


def _memories(least: Memory) -> Iterator[Memory]:
    """From `least` on: those with the fewest coefficients first, and of these the one with the fewest latents."""
    for size in range(sum(least), limits.TABLE_LATENTS + limits.TABLE_NOISES + 1):
        for latents in range(least[0], limits.TABLE_LATENTS + 1):
            if least[1] <= size - latents <= limits.TABLE_NOISES:
                yield latents, size - latents


def _fit(rows: NDArray[np.float64], fresh: NDArray[np.float64], memory: Memory) -> Recurrence:
    """Least squares. The weights of latents alone must explain start and what came before the window; what they leave
    of noise predictions and noise inside it are the weights of those."""
    latents, noises = memory
    m = len(rows) - 1
    every = np.concatenate([rows, fresh], axis=1)
    i = np.arange(m)[:, None]
    behind = i - np.arange(latents)
    earlier = every[np.maximum(behind, 0)] * (behind >= 0)[..., None]  # [m, K, columns]
    # The evaluation in which a column comes in; start is older than any window.
    since = np.concatenate([[-1 - noises], np.arange(m), np.arange(fresh.shape[1])])
    outside = since < np.maximum(0, i + 1 - noises)  # [m, columns]
    known = np.linalg.pinv(earlier * outside[:, None], rcond=_RANK)  # [m, columns, K]
    of_latents = np.einsum("ij,ijk->ik", every[1:] * outside, known)
    # Once more for what rounding has left: the last latents are close to each other.
    rest = every[1:] - np.einsum("ik,ikj->ij", of_latents, earlier)
    of_latents += np.einsum("ij,ijk->ik", rest * outside, known)
    rest = every[1:] - np.einsum("ik,ikj->ij", of_latents, earlier)
    of_noises = _window(rest[:, 1 : m + 1], noises)
    of_fresh = _window(rest[:, m + 1 :], noises) if fresh.size else np.zeros((m, 0))
    of_fresh[np.abs(of_fresh) < _NO_NOISE] = 0
    used = np.flatnonzero(of_fresh.any(axis=0))
    return Recurrence(of_latents, of_noises, of_fresh[:, : used[-1] + 1 if used.size else 0])


def _window(weights: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """[m, m] weights of what came in at each evaluation -> [m, width]: of the last ones, the latest first."""
    behind = np.arange(len(weights))[:, None] - np.arange(width)
    return np.where(behind >= 0, np.take_along_axis(weights, np.maximum(behind, 0), axis=1), 0.0)


def _error(recurrence: Recurrence, rows: NDArray[np.float64], fresh: NDArray[np.float64]) -> float:
    """The largest error of an expanded row, relative to the row's norm."""
    m = len(rows) - 1
    got = np.zeros_like(rows[1:])
    got[np.tril_indices(m, 1, m + 1)] = expand(recurrence.of_latents, recurrence.of_noises)
    expected = np.concatenate([rows[1:], fresh[1:]], axis=1)
    got = np.concatenate([got, _expand_fresh(recurrence, fresh.shape[1])], axis=1)
    norms = np.linalg.norm(expected, axis=1)
    errors = np.linalg.norm(got - expected, axis=1)
    # A row of zeros has to be one of zeros.
    relative = np.divide(errors, norms, out=np.where(errors > 0, np.inf, 0.0), where=norms > 0)
    return float(np.nan_to_num(relative, nan=np.inf).max())


def _expand_fresh(recurrence: Recurrence, columns: int) -> NDArray[np.float64]:
    """[m, columns]: the weights of z_0 .. in every x_i."""
    m = len(recurrence.of_latents)
    out = np.zeros((m, columns))
    if not columns:
        return out
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(m):
            # Before the first evaluation there is no noise.
            for k, weight in enumerate(recurrence.of_latents[i, :i]):
                out[i] += weight * out[i - 1 - k]
            for k, weight in enumerate(recurrence.of_fresh[i, : i + 1]):
                out[i, i - k] += weight
    return out
