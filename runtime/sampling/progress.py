"""Progress of a run: what the `on_step` callback receives after each evaluation, and how it cancels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ebca.runtime.schema import parameters as rules
from ebca.runtime.shown import Shown


@dataclass(frozen=True, repr=False)
class StepInfo(Shown):
    """State after one evaluation. The arrays are views that the next evaluation overwrites.

    Attributes:
        index: of the evaluation, from 0.
        total: number of evaluations (PNDM makes one more than steps).
        timestep: of the evaluation.
        latents: [n,C,h,w] float32 after the scheduler step.
        contexts: [B,S,T,D] float32 after the last layer.
        scale: what the UNet's next input is, as a multiple of the latents; 1 after the last evaluation.
    """

    index: int
    total: int
    timestep: float
    latents: np.ndarray
    contexts: np.ndarray
    scale: float = 1.0

    @property
    def unit_latents(self) -> np.ndarray:
        """[n,C,h,w] float32: the latents as the UNet sees them next, of about unit variance with every scheduler."""
        return self.latents * np.float32(self.scale)


OnStep = Callable[[StepInfo], bool | None]
"""Called after each evaluation; False cancels."""


def report(on_step: OnStep | None, info: StepInfo) -> None:
    """Call `on_step`. Raises CancelledError if it returns False."""
    if on_step is not None and on_step(info) is False:
        raise rules.CANCELLED.error(count=info.index + 1, total=info.total)


def check_latents(latents: np.ndarray, timestep: float) -> None:
    """Raise NumericalError if the latents are no longer finite."""
    if not np.isfinite(latents).all():
        raise rules.LATENTS_RAN_AWAY.error(timestep=timestep)
