"""Which diffusers schedulers a checkpoint gets, and with which options.

The checkpoint's own scheduler is the one that its diffusers pipeline would run: the class and options of
`scheduler_config.json`, after the corrections that the pipelines of Stable Diffusion make to old configs. Every other
name is what `SomeScheduler.from_config(pipe.scheduler.config)` makes, so it keeps the checkpoint's options as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from ebca.errors import ExportError

INVERSE = "ddim_inverse"
ONE_STEP = ("ddim", "euler")
"""Schedulers that can start at an intermediate noise level, as image to image does."""
REPLACEMENTS = ("euler", "dpmpp_2m", "unipc", "ddim", "pndm")
"""What replaces a checkpoint's own scheduler without a table: those first that know most of diffusers' options."""


@dataclass(frozen=True)
class SchedulerSpec:
    """A scheduler that can be tabulated: the diffusers class, and settings that override the checkpoint's config."""

    diffusers_class: Any
    overrides: Mapping[str, Any] = field(default_factory=dict)
    minimum_steps: int = 1


SCHEDULERS: dict[str, SchedulerSpec] = {
    "pndm": SchedulerSpec(PNDMScheduler),
    # Clipping to [-1, 1] is meant for pixels; diffusers' Stable Diffusion pipelines turn it off as well.
    "ddim": SchedulerSpec(DDIMScheduler, {"clip_sample": False}),
    # N points have N - 1 intervals between them, so the inversion of one step has nothing to evaluate.
    INVERSE: SchedulerSpec(DDIMInverseScheduler, {"clip_sample": False}, minimum_steps=2),
    "euler": SchedulerSpec(EulerDiscreteScheduler),
    "dpmpp_2m": SchedulerSpec(
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
    ),
    "unipc": SchedulerSpec(UniPCMultistepScheduler),
}
"""The schedulers of every engine directory. A checkpoint's own DPM-Solver of another kind is added to them."""

_RANDOM = "draws random numbers at every step, which no table can hold"
_UNKNOWN = "cannot be exported"

# What replaces a checkpoint's own scheduler that cannot be tabulated: the closest method that can. Any other: "euler".
_STAND_INS: dict[str, tuple[str, str]] = {
    "DDPMScheduler": ("ddim", _RANDOM),
    "LCMScheduler": ("ddim", _RANDOM),
    "TCDScheduler": ("ddim", _RANDOM),
    "EulerAncestralDiscreteScheduler": ("euler", _RANDOM),
    "KDPM2AncestralDiscreteScheduler": ("euler", _RANDOM),
    "DPMSolverSDEScheduler": ("dpmpp_2m", _RANDOM),
    "DEISMultistepScheduler": ("dpmpp_2m", _UNKNOWN),
    "DPMSolverSinglestepScheduler": ("dpmpp_2m", _UNKNOWN),
}


@dataclass(frozen=True)
class CheckpointSchedulers:
    """The schedulers of one checkpoint.

    Attributes:
        own: name of the checkpoint's own scheduler, or of what replaces it.
        specs: by name; `SCHEDULERS`, and the checkpoint's own if it is none of them.
        own_config: options of `own`.
        config: options of every other scheduler.
        problem: why `own` is not the checkpoint's scheduler, without the name of what replaces it; None if it is.
    """

    own: str
    specs: Mapping[str, SchedulerSpec]
    own_config: Mapping[str, Any]
    config: Mapping[str, Any]
    problem: str | None = None

    def make(self, name: str) -> Any:
        """A new diffusers scheduler. Raises ExportError if diffusers refuses the options, or if they are not linear."""
        spec = self.specs[name]
        if name == INVERSE:
            # The inversion runs through the timesteps of DDIM, whatever options DDIM takes from the checkpoint.
            config = dict(self.make("ddim").config)
            del config["_use_default_values"]
            if config["timestep_spacing"] == "linspace":
                config["timestep_spacing"] = "leading"  # diffusers' inverse knows only this one and "trailing"
        else:
            config = dict(self.own_config if name == self.own else self.config)
        scheduler = _from_config(name, spec, config)
        _refuse_nonlinear(name, scheduler)
        return scheduler


def checkpoint_schedulers(config: Mapping[str, Any], *, inpainting: bool = False) -> CheckpointSchedulers:
    """The schedulers of a checkpoint.

    Args:
        config: the checkpoint's `scheduler_config.json`. `_class_name` is the class; PNDM without it.
        inpainting: whether the checkpoint is made for diffusers' inpainting pipeline.
    """
    shared, own_config = _corrected(config, inpainting=inpainting)
    class_name = str(config.get("_class_name") or "PNDMScheduler")
    classes = {spec.diffusers_class.__name__: name for name, spec in SCHEDULERS.items() if name != INVERSE}
    if class_name not in classes:
        own, reason = _STAND_INS.get(class_name, ("euler", _UNKNOWN))
        problem = f"the checkpoint's scheduler {class_name} {reason}"
        return CheckpointSchedulers(own, SCHEDULERS, shared, shared, problem)
    own, specs = classes[class_name], dict(SCHEDULERS)
    if own == "dpmpp_2m":
        algorithm = str(own_config.get("algorithm_type", "dpmsolver++"))
        if algorithm.startswith("sde"):
            problem = f"the checkpoint's scheduler {class_name} with algorithm_type {algorithm} {_RANDOM}"
            return CheckpointSchedulers(own, specs, shared, shared, problem)
        own = _dpm_solver_name(own_config)
        specs.setdefault(own, SchedulerSpec(DPMSolverMultistepScheduler))
    return CheckpointSchedulers(own, specs, own_config, shared)


def _corrected(config: Mapping[str, Any], *, inpainting: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of other schedulers and of the checkpoint's own, corrected as in diffusers' pipelines.

    diffusers corrects the own scheduler even where the config is silent. Another scheduler that is made from it sees
    a correction only if the config had the key.
    """
    always: dict[str, Any] = {"steps_offset": 1}
    if inpainting:
        always["skip_prk_steps"] = True
    shared = {**config, **{key: value for key, value in always.items() if key in config}}
    return shared, {**shared, **always}


def _dpm_solver_name(config: Mapping[str, Any]) -> str:
    """DPM++ of second order is "dpmpp_2m", of third order "dpmpp_3m"; the first DPM-Solver is "dpm_2m"."""
    algorithm = str(config.get("algorithm_type", "dpmsolver++")).replace("dpmsolver", "dpm").replace("++", "pp")
    order = config.get("solver_order", 2)
    heun = "_heun" if order == 2 and config.get("solver_type") == "heun" else ""
    return f"{algorithm}_{order}m{heun}"


def _from_config(name: str, spec: SchedulerSpec, config: Mapping[str, Any]) -> Any:
    try:
        with _quiet_diffusers():
            return spec.diffusers_class.from_config({**config, **spec.overrides})
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise ExportError(f"diffusers cannot make scheduler {name!r} from this config: {error}") from error


def _refuse_nonlinear(name: str, scheduler: Any) -> None:
    known = type(scheduler)._get_init_keys(type(scheduler))
    for key, why in (
        ("thresholding", "dynamic thresholding depends on the latents"),
        ("use_dynamic_shifting", "the timesteps depend on the image size"),
    ):
        if key in known and scheduler.config.get(key):
            raise ExportError(
                f"scheduler {name!r} has {key}=true, which no table can hold ({why})",
                "set it to false in scheduler_config.json",
            )


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """diffusers warns about keys that a class does not know; here, every class gets the same config."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
