"""The sampling loop: one recorded UNet evaluation after the other, from noise to latents."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ebca.errors import CancelledError, NumericalError
from ebca.runtime.control import ControlArrays
from ebca.runtime.denoiser import check_finite
from ebca.runtime.executor import Executor
from ebca.runtime.schedulers import Scheduler, SchedulerTable


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


@dataclass
class Sampled:
    """latents [n,C,h,w]; energies [evaluations,L,2,B,S] or None; seconds per UNet evaluation and of all the rest."""

    latents: np.ndarray
    energies: np.ndarray | None
    unet_seconds: list[float] = field(default_factory=list)
    scheduler_seconds: float = 0.0


def sample(
    executor: Executor,
    table: SchedulerTable,
    start: np.ndarray,
    controls: Sequence[ControlArrays],
    *,
    guidance_scale: float | None,
    energies: bool = False,
    on_step: OnStep | None = None,
) -> Sampled:
    """Run every evaluation of a scheduler table.

    Args:
        executor: its contexts hold the prompts' embeddings; its rows are those of `start`, twice with guidance.
        start: noise [n,C,h,w] of unit variance.
        controls: one per evaluation.
        guidance_scale: of classifier-free guidance, the unconditional rows first; None: conditional rows only.
        energies: record them.
        on_step: called after each evaluation; False cancels.

    Raises:
        CancelledError: `on_step` returned False.
        NumericalError: a result is not finite; the message names the segment.
    """
    scheduler = Scheduler(table, start.shape)
    begin = current = scheduler.start(start)
    total = table.evaluations
    recorded = np.empty((total, *executor.energies.shape), np.float32) if energies else None
    sampled = Sampled(current, recorded)
    for i, control in enumerate(controls):
        began = time.perf_counter()
        timestep = float(table.timesteps[i])
        variant = "energies" if energies else control.variant
        # With guidance the same latents go to both halves of the rows.
        rows = executor.sample.reshape(-1, *start.shape)
        rows[...] = scheduler.model_input(i, current)
        executor.timestep[...] = timestep
        executor.set_control(control)
        prepared = time.perf_counter()
        executor.run(variant)
        done = time.perf_counter()
        check_finite(executor, variant, timestep)
        _guide(executor.noise.reshape(-1, *start.shape), guidance_scale, out=scheduler.noises[i])
        with np.errstate(over="ignore", invalid="ignore"):
            current = scheduler.combine(i, begin)
        if not np.isfinite(current).all():
            raise NumericalError(
                f"the latents after timestep {timestep:g} are not finite, though the noise prediction is; "
                "lower guidance_scale"
            )
        if recorded is not None:
            recorded[i] = executor.energies
        sampled.unet_seconds.append(done - prepared)
        sampled.scheduler_seconds += time.perf_counter() - done + prepared - began
        if on_step is not None and on_step(StepInfo(i, total, timestep, current, executor.contexts_out)) is False:
            raise CancelledError(f"cancelled after {i + 1} of {total} evaluations")
    sampled.latents = np.array(current)
    return sampled


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
