"""What an export is asked for, with every rule about it, and what it reports while it runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ebca.engines.contract.limits import FACTOR
from ebca.engines.contract.manifest import COMPUTES
from ebca.errors import ParameterError
from ebca.export.plans.shapes import PlanOptions
from ebca.export.spacing import Named

PRECISIONS = ("fp32", "fp16")

# Every Stable Diffusion is trained with this number of timesteps.
TRAINING_STEPS = 1000

EMBEDDED_GUIDANCE = 8.5
"""The guidance scale that diffusers' pipeline of latent consistency models takes by default."""

DISTILLED_STEPS = 4
"""Default steps of a model whose scheduler is that of latent or trajectory consistency models."""

DEFAULT_STEPS: tuple[int, ...] = tuple(range(1, 201))
"""Step counts that every engine directory has scheduler tables for."""

COMMON_STEPS: tuple[int, ...] = (*range(1, 51), 60, 75, 80, 100)
"""Step counts of those schedulers that are less used, or more work to tabulate."""


@dataclass(frozen=True)
class ExportEvent:
    """Progress of an export: `done` of `total` bytes of weights are written; `text` names the work that starts."""

    text: str
    done: int
    total: int


OnProgress = Callable[[ExportEvent], None]
"""Called before each piece of work. An exception that it raises ends the export."""


@dataclass(frozen=True)
class ExportOptions:
    """What to write beside the split UNet, and in which types.

    Attributes:
        precision: "fp32", or "fp16" to store weights as float16.
        compute: "fp32", or "fp16" for graphs that compute in float16, for GPUs; needs precision fp16.
        vae_float32: let the VAE compute in float32 although the other graphs compute in float16, for a VAE that
            overflows float16.
        plans: also build TensorRT plans ahead of time; needs compute fp16.
        with_full_unet: also export the full UNet without updates, for steps whose gammas are all zero. It takes the
            UNet's size a second time.
        with_full_unet_updates: also export the full UNet with updates, whose ops TensorRT runs as a plugin. It takes
            the UNet's size once more.
        scheduler_steps: step counts to tabulate beside 1 to 200.
        schedulers: names of schedulers to tabulate beside `ebca.export.scheduler_choice.DEFAULT_NAMES`.
        scheduler_config: options that override the checkpoint's scheduler config.
        spacings: schedulers with timesteps or noise levels of a user, see `ebca.export.spacing`.
        guidance_scale: the default guidance scale of this model; None: see `ebca.export.distilled`. A UNet
            that is told its guidance scale gets this one built in.
        default_steps: steps of a request that does not say; None: 4 for models of consistency schedulers, else 50.
        subject_side: of the maps that locate subjects, in positions at the native size. None: found, see
            `ebca.export.stages.subject_layers`.
    """

    precision: str = "fp32"
    compute: str = "fp32"
    vae_float32: bool = False
    plans: PlanOptions | None = None
    with_full_unet: bool = False
    with_full_unet_updates: bool = False
    scheduler_steps: Sequence[int] = ()
    schedulers: Sequence[str] = ()
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    spacings: Sequence[Named] = ()
    guidance_scale: float | None = None
    default_steps: int | None = None
    subject_side: int | None = None

    @property
    def stores_half(self) -> bool:
        """Whether weights are stored as float16."""
        return self.precision == "fp16"

    @property
    def computes_half(self) -> bool:
        """Whether graphs compute in float16."""
        return self.compute == "fp16"

    @property
    def bytes_per_weight(self) -> int:
        return 2 if self.stores_half else 4

    @property
    def all_steps(self) -> list[int]:
        """Step counts to tabulate, sorted."""
        return sorted({*DEFAULT_STEPS, *self.scheduler_steps})

    @property
    def common_steps(self) -> list[int]:
        """Step counts to tabulate of less used schedulers, sorted."""
        return sorted({*COMMON_STEPS, *self.scheduler_steps})

    def validate(self, spell: Callable[[str], str] = str) -> None:
        """Raise ParameterError if a value is wrong, or if two options exclude each other.

        Args:
            spell: what the caller calls an option; the command line turns a field's name into its flag.
        """
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("compute", self.compute, COMPUTES)
        if self.computes_half and not self.stores_half:
            raise ParameterError(f"compute is fp16 and precision is {self.precision}", "give precision fp16")
        if self.plans is not None:
            if not self.computes_half:
                raise ParameterError("plans are built from graphs that compute in float16", "give compute fp16")
            self.plans.validate(spell)
            if self.with_full_unet_updates and not self.plans.takes_plugins:
                raise ParameterError(
                    f"{self.plans.library} takes no plugins, and {spell('with_full_unet_updates')} needs one",
                    f"give {spell('library')} tensorrt, or leave it out",
                )
        for steps in self.scheduler_steps:
            if not 1 <= steps <= TRAINING_STEPS:
                raise ParameterError(
                    f"{spell('scheduler_steps')} has {steps}", f"a step count lies between 1 and {TRAINING_STEPS}"
                )
        if self.default_steps is not None and not 1 <= self.default_steps <= TRAINING_STEPS:
            raise ParameterError(
                f"{spell('default_steps')} is {self.default_steps}", f"give a number from 1 to {TRAINING_STEPS}"
            )
        if self.guidance_scale is not None and not abs(self.guidance_scale) <= FACTOR:
            raise ParameterError(
                f"{spell('guidance_scale')} is {self.guidance_scale}", f"give a number from {-FACTOR:g} to {FACTOR:g}"
            )


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ParameterError(f"{name} '{value}' is unknown", f"choose one of {', '.join(choices)}")
