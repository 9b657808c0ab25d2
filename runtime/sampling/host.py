"""The sampling loop: one guided noise prediction after the other, from start latents to the end of a table."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ebca.errors import CancelledError, NumericalError
from ebca.runtime.execution.control import ControlArrays
from ebca.runtime.execution.executor import Executor, Probe
from ebca.runtime.execution.inspection import check_finite
from ebca.runtime.sampling.tables import Scheduler, SchedulerTable


@dataclass(frozen=True)
class StepInfo:
    """State after one evaluation. Arrays are views that the next step overwrites.

    index counts from 0; total is the number of evaluations (PNDM makes one more than steps); latents [n,C,h,w];
    contexts [B,S,T,D] after the last layer.
    """

    index: int
    total: int
    timestep: float
    latents: np.ndarray
    contexts: np.ndarray


OnStep = Callable[[StepInfo], bool | None]

Adjust = Callable[[np.ndarray], None]
"""Changes a guided noise prediction [n,C,h,w] in place before the scheduler sees it."""


class NoisePredictor:
    """Guided noise predictions of one generation, with what goes from one evaluation to the next.

    Args:
        executor: its contexts hold the prompts' embeddings; with guidance the unconditional rows come first.
        guidance_scale: of classifier-free guidance; None: conditional rows only.
        known: [n,K,h,w] channels that follow the latents into the UNet of an inpainting model; None for other models.
        reset_edits: start every evaluation from the embeddings of the editing prompts. By default they go on from
            what the last evaluation made of them, as in the authors' code.
        energies: record them.
        probe: sees q and k of every layer at every evaluation.

    Attributes:
        seconds: of each UNet evaluation.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        guidance_scale: float | None,
        known: np.ndarray | None = None,
        reset_edits: bool = False,
        energies: bool = False,
        probe: Probe | None = None,
    ) -> None:
        self.executor = executor
        self.seconds: list[float] = []
        self._guidance_scale = guidance_scale
        self._carry = executor.sizes["contexts"] > 1 and not reset_edits
        self._record: list[np.ndarray] | None = [] if energies else None
        self._timesteps: list[float] = []
        self._probe = probe
        self._channels = executor.noise.shape[1]
        if known is not None:
            self._rows(executor.sample, len(known))[:, :, self._channels :] = known

    @property
    def energies(self) -> np.ndarray | None:
        """[evaluations,L,2,B,S] so far, or None where none were asked for."""
        return None if self._record is None else np.stack(self._record)

    @property
    def timesteps(self) -> list[float]:
        """Of the evaluations so far."""
        return self._timesteps

    def predict(self, latents: np.ndarray, timestep: float, control: ControlArrays, out: np.ndarray) -> None:
        """One evaluation: latents [n,C,h,w] as the UNet sees them -> guided noise prediction in `out`.

        Raises:
            NumericalError: a result is not finite; the message names the segment.
        """
        executor = self.executor
        variant = control.variant if self._record is None else "energies"
        # With guidance the same latents go to both halves of the rows.
        self._rows(executor.sample, len(latents))[:, :, : self._channels] = latents
        executor.timestep[...] = timestep
        executor.set_control(control)
        began = time.perf_counter()
        executor.run(variant, self._probe)
        self.seconds.append(time.perf_counter() - began)
        check_finite(executor, variant, timestep)
        _guide(self._rows(executor.noise, len(latents)), self._guidance_scale, out)
        if self._carry:
            executor.contexts[:, 1:] = executor.contexts_out[:, 1:]
        self._timesteps.append(timestep)
        if self._record is not None:
            self._record.append(executor.energies.copy())

    @staticmethod
    def _rows(array: np.ndarray, pictures: int) -> np.ndarray:
        return array.reshape(-1, pictures, *array.shape[1:])


def sample(
    predictor: NoisePredictor,
    table: SchedulerTable,
    start: np.ndarray,
    controls: Sequence[ControlArrays],
    *,
    adjust: Adjust | None = None,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Run every evaluation of a scheduler table. Returns the latents [n,C,h,w].

    Args:
        predictor: of as many pictures as `start` has.
        start: noise [n,C,h,w] of unit variance.
        controls: one per evaluation.
        adjust: changes each noise prediction before the scheduler sees it.
        on_step: called after each evaluation; False cancels.

    Raises:
        CancelledError: `on_step` returned False.
        NumericalError: a result is not finite; the message names the segment.
    """
    scheduler = Scheduler(table, start.shape)
    begin = current = scheduler.start(start)
    total = table.evaluations
    for i, control in enumerate(controls):
        timestep = float(table.timesteps[i])
        predictor.predict(scheduler.model_input(i, current), timestep, control, out=scheduler.noises[i])
        if adjust is not None:
            adjust(scheduler.noises[i])
        with np.errstate(over="ignore", invalid="ignore"):
            current = scheduler.combine(i, begin)
        check_latents(current, timestep)
        report(on_step, StepInfo(i, total, timestep, current, predictor.executor.contexts_out))
    return np.array(current)


def check_latents(latents: np.ndarray, timestep: float) -> None:
    """Raise NumericalError where latents have run away."""
    if not np.isfinite(latents).all():
        raise NumericalError(
            f"the latents after timestep {timestep:g} are not finite, though the noise prediction is",
            "lower guidance_scale",
        )


def report(on_step: OnStep | None, info: StepInfo) -> None:
    """Call `on_step`. Raises CancelledError where it returns False."""
    if on_step is not None and on_step(info) is False:
        raise CancelledError(f"cancelled after {info.index + 1} of {info.total} evaluations")


def _guide(noise: np.ndarray, guidance_scale: float | None, out: np.ndarray) -> None:
    """noise [halves,n,C,h,w]: unconditional + scale * (conditional - unconditional), or what there is of one half."""
    if guidance_scale is None:
        out[...] = noise[0]
        return
    unconditional, conditional = noise
    with np.errstate(over="ignore", invalid="ignore"):
        np.subtract(conditional, unconditional, out=out)
        out *= np.float32(guidance_scale)
        out += unconditional
