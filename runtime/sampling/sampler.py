"""The interface of sampling: from initial latents to final latents, step by step on the host or as CUDA graphs.

A `Stepper` defines how latents change from one evaluation to the next: by a scheduler table, or by RePaint. A `Sampler`
runs the evaluations. `HostSampler` accepts every stepper; `GraphSampler` only steppers that consist of a table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ebca.plugins.energy_attention import GUIDED
from ebca.runtime.execution.control import ControlArrays
from ebca.runtime.sampling.controlnets import ControlInputs
from ebca.runtime.sampling.progress import OnStep
from ebca.runtime.sampling.subjects import SubjectInputs
from ebca.runtime.sampling.tables import SchedulerTable


@dataclass(frozen=True)
class Evaluation:
    """One UNet evaluation to run.

    Attributes:
        timestep: input of the UNet.
        control: index into `SamplerInputs.controls`.
        model_input: [n,C,h,w] float32, the scaled latents.
    """

    timestep: float
    control: int
    model_input: np.ndarray


class Stepper(Protocol):
    """Defines how latents change from one evaluation to the next. Holds the state of one run."""

    @property
    def total(self) -> int:
        """Number of evaluations."""
        ...

    @property
    def table(self) -> SchedulerTable | None:
        """The table, if it fully defines the steps, so that a device can run them without the host; else None."""
        ...

    def known(self, latents: np.ndarray) -> Iterator[np.ndarray] | None:
        """For a device that runs the table from initial latents [n,C,h,w] of unit variance: what it adds the sum of
        noise predictions to after each evaluation, [n,C,h,w] float32 each. None: multiples of the scaled latents."""
        ...

    @property
    def timesteps(self) -> Sequence[float]:
        """Every timestep that an evaluation may have, without repetition, in ascending order."""
        ...

    def start(self, latents: np.ndarray) -> None:
        """Start a run from initial latents [n,C,h,w] of unit variance."""
        ...

    def evaluation(self, index: int) -> Evaluation:
        """The next evaluation; `index` counts from 0."""
        ...

    def step(self, index: int, noise: np.ndarray) -> np.ndarray:
        """Consume the guided noise prediction [n,C,h,w], possibly changing it in place. Returns the new latents."""
        ...


@dataclass(frozen=True)
class SamplerInputs:
    """Inputs of one run. The prompt embeddings are already in the executor's contexts.

    Attributes:
        stepper: defines how latents change.
        latents: initial latents [n,C,h,w] of unit variance.
        controls: one per evaluation (RePaint: one per noise level).
        guidance_scale: of classifier-free guidance; None: conditional rows only.
        image_guidance_scale: of InstructPix2Pix, whose images have three rows; None: two at most. A device that samples
            without the host does not know it.
        extra_channels: extra UNet channels [n,K,h,w], or [parts,n,K,h,w] if they are not the same for all parts of the
            rows; None for models that take the latents alone.
        carry_edits: carry the contexts of editing prompts over to the next evaluation, as the authors' code does.
        subjects: of the images, which are kept apart; None: none. The executor needs a group for each.
        controlnets: what steers the images beside the prompts; None: nothing.
    """

    stepper: Stepper
    latents: np.ndarray
    controls: Sequence[ControlArrays]
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    extra_channels: np.ndarray | None = None
    carry_edits: bool = False
    subjects: SubjectInputs | None = None
    controlnets: ControlInputs | None = None

    def variant(self, control: int) -> str:
        """The variant of the op for an evaluation with this control."""
        return self.controls[control].variant + (GUIDED if self.subjects is not None else "")


@dataclass(frozen=True)
class Samples:
    """Outputs of one run.

    Attributes:
        latents: final latents [n,C,h,w] float32.
        timesteps: one per evaluation.
        seconds: one per evaluation.
        energies: [evaluations,L,2,B,S] (attention, norm), or None if not requested.
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
        """Run every evaluation. Call `prepare` with the same inputs first.

        Raises:
            CancelledError: `on_step` returned False.
            NumericalError: a result is not finite; the message names the segment or the timestep.
        """
        ...
