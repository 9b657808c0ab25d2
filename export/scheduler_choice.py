"""Which diffusers schedulers a checkpoint gets, and with which options.

The checkpoint's own scheduler is the one that its diffusers pipeline would run: the class and options of
`scheduler_config.json`, after the corrections that the pipelines of Stable Diffusion make to old configs. Every other
name is what `SomeScheduler.from_config(pipe.scheduler.config)` makes, so it keeps the checkpoint's options as well.

A name may end in a variant: "dpmpp_2m_karras" is "dpmpp_2m" with Karras sigmas.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from ebca.errors import ExportError, ParameterError

INVERSE = "ddim_inverse"
ONE_STEP = ("ddim", "euler", "ddpm", "euler_ancestral", "heun", "dpmpp_sde", "lcm", "tcd")
"""Schedulers that can start at an intermediate noise level, as image to image does."""
REPLACEMENTS = ("euler", "dpmpp_2m", "unipc", "ddim", "pndm")
"""What replaces a checkpoint's own scheduler without a table: those first that know most of diffusers' options."""


def _dpm_solver_sde() -> Any:
    """diffusers' DPMSolverSDEScheduler. Its module imports torchsde, which only its own noise needs; a table has none
    of that, so an empty module stands in for torchsde where it is not installed."""
    missing = find_spec("torchsde") is None
    if missing:
        sys.modules["torchsde"] = ModuleType("torchsde")
    try:
        return import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
    finally:
        if missing:
            del sys.modules["torchsde"]


@dataclass(frozen=True)
class SchedulerSpec:
    """A scheduler that can be tabulated: the diffusers class, and settings that override the checkpoint's config.

    Attributes:
        diffusers_class: the class, or a function that finds it.
        overrides: of the config.
        minimum_steps: fewest steps that make sense.
        eta: argument of `step`; None if it takes none. The config's key `eta`, which diffusers does not know, wins.
    """

    diffusers_class: Any
    overrides: Mapping[str, Any] = field(default_factory=dict)
    minimum_steps: int = 1
    eta: float | None = None

    def resolved_class(self) -> Any:
        """The diffusers class."""
        return self.diffusers_class if inspect.isclass(self.diffusers_class) else self.diffusers_class()


# Clipping to [-1, 1] is meant for pixels; diffusers' Stable Diffusion pipelines turn it off as well.
_UNCLIPPED = {"clip_sample": False}
_DPM_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}

SCHEDULERS: dict[str, SchedulerSpec] = {
    "pndm": SchedulerSpec(PNDMScheduler),
    "ddim": SchedulerSpec(DDIMScheduler, _UNCLIPPED, eta=0.0),
    # N points have N - 1 intervals between them, so the inversion of one step has nothing to evaluate.
    INVERSE: SchedulerSpec(DDIMInverseScheduler, _UNCLIPPED, minimum_steps=2),
    "euler": SchedulerSpec(EulerDiscreteScheduler),
    "dpmpp_2m": SchedulerSpec(DPMSolverMultistepScheduler, _DPM_2M),
    "unipc": SchedulerSpec(UniPCMultistepScheduler),
    "ddpm": SchedulerSpec(DDPMScheduler, _UNCLIPPED),
    "euler_ancestral": SchedulerSpec(EulerAncestralDiscreteScheduler),
    "heun": SchedulerSpec(HeunDiscreteScheduler),
    "dpmpp_2m_sde": SchedulerSpec(DPMSolverMultistepScheduler, {**_DPM_2M, "algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_sde": SchedulerSpec(_dpm_solver_sde),
    "lcm": SchedulerSpec(LCMScheduler, _UNCLIPPED),
    # diffusers' default of `step`, and what the authors of TCD recommend.
    "tcd": SchedulerSpec(TCDScheduler, _UNCLIPPED, eta=0.3),
}
"""The schedulers without variants."""

_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
VARIANTS: dict[str, Mapping[str, Any]] = {
    "karras": {key: key == "use_karras_sigmas" for key in _SIGMAS},
    "exponential": {key: key == "use_exponential_sigmas" for key in _SIGMAS},
    "beta": {key: key == "use_beta_sigmas" for key in _SIGMAS},
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading"},
    "linspace": {"timestep_spacing": "linspace"},
}
"""What a name may end in, and the options that it sets."""

DEFAULT_NAMES = (*SCHEDULERS, "dpmpp_2m_karras", "dpmpp_2m_sde_karras", "dpmpp_sde_karras")
"""The tables of every engine directory. A checkpoint's own DPM-Solver of another kind is added to them."""

_UNKNOWN = "cannot be exported"

# What replaces a checkpoint's own scheduler that cannot be tabulated: the closest method that can. Any other: "euler".
_STAND_INS = {
    "KDPM2AncestralDiscreteScheduler": "euler_ancestral",
    "KDPM2DiscreteScheduler": "heun",
    "DEISMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2m",
}


def find_spec_of(name: str, specs: Mapping[str, SchedulerSpec]) -> SchedulerSpec | None:
    """The spec of a name that may end in a variant; None if there is none, or if its class lacks the options."""
    if name in specs:
        return specs[name]
    base, _, variant = name.rpartition("_")
    if base not in specs or variant not in VARIANTS:
        return None
    spec, options = specs[base], VARIANTS[variant]
    known = inspect.signature(spec.resolved_class().__init__).parameters
    # Euler and others of diffusers know karras sigmas but no beta sigmas, or none at all.
    wanted = {key for key, value in options.items() if value}
    if not wanted <= known.keys():
        return None
    kept = {key: value for key, value in options.items() if key in known}
    return replace(spec, overrides={**spec.overrides, **kept})


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

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*DEFAULT_NAMES, *self.specs)))

    def spec(self, name: str) -> SchedulerSpec:
        """Raises ParameterError for an unknown name, or a variant that diffusers does not have."""
        spec = find_spec_of(name, self.specs)
        if spec is None:
            known = [one for one in self.specs if one != INVERSE]
            raise ParameterError(
                f"scheduler {name!r} is unknown",
                f"choose from {', '.join(known)}; most take one of {', '.join('_' + one for one in VARIANTS)} "
                "at the end",
            )
        return spec

    def eta(self, name: str) -> float | None:
        """The argument `eta` of the scheduler's steps; None if they take none. Raises ExportError if it is wrong."""
        if self.spec(name).eta is None:
            return None
        eta = self.config.get("eta", self.spec(name).eta)
        if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0 <= eta <= 1:
            raise ExportError(f"eta is {eta!r}", "give a number from 0 to 1")
        return float(eta)

    def make(self, name: str) -> Any:
        """A new diffusers scheduler. Raises ExportError if diffusers refuses the options, or if they are not linear."""
        spec = self.spec(name)
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


def known_options() -> set[str]:
    """What a scheduler config may say: the options of every class, the class itself, and eta."""
    keys = {"_class_name", "eta"}
    for spec in SCHEDULERS.values():
        keys |= inspect.signature(spec.resolved_class().__init__).parameters.keys() - {"self", "kwargs"}
    return keys


def checkpoint_schedulers(
    config: Mapping[str, Any], *, inpainting: bool = False, xl: bool = False
) -> CheckpointSchedulers:
    """The schedulers of a checkpoint.

    Args:
        config: the checkpoint's `scheduler_config.json`. `_class_name` is the class; PNDM without it.
        inpainting: whether the checkpoint is made for diffusers' inpainting pipeline.
        xl: whether it is Stable Diffusion XL, whose pipelines correct nothing.
    """
    shared, own_config = (config, config) if xl else _corrected(config, inpainting=inpainting)
    class_name = str(config.get("_class_name") or "PNDMScheduler")
    specs = dict(SCHEDULERS)
    own = _own_name(class_name, own_config)
    if own is None:
        stand_in = _STAND_INS.get(class_name, "euler")
        return CheckpointSchedulers(
            stand_in, specs, shared, shared, f"the checkpoint's scheduler {class_name} {_UNKNOWN}"
        )
    specs.setdefault(own, SchedulerSpec(DPMSolverMultistepScheduler))
    return CheckpointSchedulers(own, specs, own_config, shared)


def _own_name(class_name: str, config: Mapping[str, Any]) -> str | None:
    """The name of a checkpoint's own scheduler; None for a class that cannot be tabulated."""
    if class_name == DPMSolverMultistepScheduler.__name__:
        return _dpm_solver_name(config)
    if class_name == "DPMSolverSDEScheduler":
        return "dpmpp_sde"
    classes = {spec.diffusers_class.__name__: name for name, spec in SCHEDULERS.items() if name != INVERSE}
    return classes.get(class_name)


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
    """DPM++ of second order is "dpmpp_2m", of third order "dpmpp_3m"; the first DPM-Solver is "dpm_2m". Those that draw
    noise end in "_sde"."""
    algorithm = str(config.get("algorithm_type", "dpmsolver++"))
    solver = algorithm.removeprefix("sde-").replace("dpmsolver", "dpm").replace("++", "pp")
    order = config.get("solver_order", 2)
    heun = "_heun" if order == 2 and config.get("solver_type") == "heun" else ""
    sde = "_sde" if algorithm.startswith("sde-") else ""
    return f"{solver}_{order}m{heun}{sde}"


def _from_config(name: str, spec: SchedulerSpec, config: Mapping[str, Any]) -> Any:
    try:
        with _quiet_diffusers():
            return spec.resolved_class().from_config({**config, **spec.overrides})
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
