"""The one seam of sampling: from initial latents to final ones, on the host or as CUDA graphs.

A `Stepper` says how latents move from one evaluation to the next: by a scheduler's table, or by RePaint. A `Sampler`
runs the evaluations: `HostSampler` takes any stepper, `GraphSampler` one that is a table and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ebca.runtime.execution.control import ControlArrays
from ebca.runtime.sampling.progress import OnStep
from ebca.runtime.sampling.tables import SchedulerTable


@dataclass(frozen=True)
class Evaluation:
    """One UNet evaluation to run: its timestep, the index of its control, and what the UNet sees [n,C,h,w]."""

    timestep: float
    control: int
    model_input: np.ndarray


class Stepper(Protocol):
    """How latents move from one evaluation to the next. Holds the state of one run."""

    @property
    def total(self) -> int:
        """Number of evaluations."""
        ...

    @property
    def table(self) -> SchedulerTable | None:
        """The table, if it alone says how latents move: then a device can run all steps without the host."""
        ...

    def start(self, latents: np.ndarray) -> None:
        """Begin a run at initial latents [n,C,h,w] of unit variance."""
        ...

    def evaluation(self, index: int) -> Evaluation:
        """What to evaluate next; `index` counts from 0."""
        ...

    def step(self, index: int, noise: np.ndarray) -> np.ndarray:
        """Take the guided noise prediction [n,C,h,w], which may be changed in place; returns the new latents."""
        ...


@dataclass(frozen=True)
class SamplerInputs:
    """What one run needs beside the executor, whose contexts hold the prompts' embeddings already.

    Attributes:
        stepper: how latents move.
        latents: initial latents [n,C,h,w] of unit variance.
        controls: one per evaluation (RePaint: per step).
        guidance_scale: of classifier-free guidance; None: conditional rows only.
        extra_channels: [n,K,h,w] that follow the latents into the UNet of an inpainting model; None for other models.
        carry_edits: contexts of editing prompts continue from evaluation to evaluation, as in the authors' code.
    """

    stepper: Stepper
    latents: np.ndarray
    controls: Sequence[ControlArrays]
    guidance_scale: float | None = None
    extra_channels: np.ndarray | None = None
    carry_edits: bool = False


@dataclass(frozen=True)
class Samples:
    """What a run made.

    Attributes:
        latents: [n,C,h,w] float32.
        timesteps: of the evaluations.
        seconds: of each evaluation.
        energies: [evaluations,L,2,B,S] (attention, norm), or None if they were not asked for.
    """

    latents: np.ndarray
    timesteps: tuple[float, ...]
    seconds: list[float]
    energies: np.ndarray | None = None


class Sampler(Protocol):
    """Runs evaluations on one executor."""

    def prepare(self, inputs: SamplerInputs) -> None:
        """Bind and record everything that `run` needs, and upload its inputs."""
        ...

    def run(self, inputs: SamplerInputs, on_step: OnStep | None = None) -> Samples:
        """Run every evaluation; `prepare` was called with the same inputs.

        Raises:
            CancelledError: `on_step` returned False.
            NumericalError: a result is not finite; the message names the segment or the timestep.
        """
        ...
