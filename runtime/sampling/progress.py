"""What a caller sees of a run after each evaluation, and can stop."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ebca.errors import CancelledError, NumericalError


@dataclass(frozen=True)
class StepInfo:
    """State after one evaluation. Arrays are views that the next evaluation overwrites.

    index counts from 0; total is the number of evaluations (PNDM makes one more than steps); latents [n,C,h,w];
    contexts [B,S,T,D] after the last layer.
    """

    index: int
    total: int
    timestep: float
    latents: np.ndarray
    contexts: np.ndarray


OnStep = Callable[[StepInfo], bool | None]
"""Called after each evaluation; False cancels."""


def report(on_step: OnStep | None, info: StepInfo) -> None:
    """Call `on_step`. Raises CancelledError if it returns False."""
    if on_step is not None and on_step(info) is False:
        raise CancelledError(f"cancelled after {info.index + 1} of {info.total} evaluations")


def check_latents(latents: np.ndarray, timestep: float) -> None:
    """Raise NumericalError if latents are no longer finite."""
    if not np.isfinite(latents).all():
        raise NumericalError(
            f"the latents after timestep {timestep:g} are not finite, though the noise prediction is",
            "lower guidance_scale",
        )
