"""Scheduler tables: everything the runtime needs to know about a diffusers scheduler, as numbers.

Every deterministic diffusers scheduler is linear in the initial latents and the noise predictions, so after
evaluation i

    x_i = row_i[0] start + sum_{j <= i} row_i[j + 1] e_j

holds for any latents. The real diffusers scheduler is run once on basis vectors (`start` = basis 0, e_j = basis j + 1),
and the result of its `step` *is* row_i. Prediction type, beta schedule, timestep spacing and the order of each solver
are all contained in those numbers, and the runtime computes one weighted sum.

`start` is the initial latents multiplied by `init_noise_sigma`; evaluation i reads `input_scale[i] * x_{i-1}` at
`timesteps[i]`. The stage `ebca.export.stages.schedulers` writes the tables and documents the file layout.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from numpy.typing import NDArray

from ebca.errors import ExportError, ParameterError
from ebca.export.options import DEFAULT_STEPS

_BETA_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")
_SAMPLING_KEYS = ("prediction_type", "timestep_spacing", "steps_offset", "set_alpha_to_one", "skip_prk_steps")

_PRK_MINIMUM_STEPS = 4


@dataclass(frozen=True)
class SchedulerSpec:
    """A scheduler that can be tabulated: the diffusers class, and settings that override the checkpoint's config."""

    diffusers_class: Any
    overrides: Mapping[str, Any]
    minimum_steps: int = 1


SCHEDULERS: dict[str, SchedulerSpec] = {
    "pndm": SchedulerSpec(PNDMScheduler, {}),
    # Clipping to [-1, 1] is meant for pixels; diffusers' Stable Diffusion pipelines turn it off as well.
    "ddim": SchedulerSpec(DDIMScheduler, {"clip_sample": False}),
    # N points have N - 1 intervals between them, so the inversion of one step has nothing to evaluate.
    "ddim_inverse": SchedulerSpec(DDIMInverseScheduler, {"clip_sample": False}, minimum_steps=2),
    "euler": SchedulerSpec(EulerDiscreteScheduler, {}),
    "dpmpp_2m": SchedulerSpec(
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
    ),
    "unipc": SchedulerSpec(UniPCMultistepScheduler, {}),
}


@dataclass(frozen=True)
class TableRecord:
    """One scheduler at one step count, m evaluations of the UNet.

    timesteps         [m] float64
    input_scale       [m] float64: the UNet reads input_scale[i] * latents
    init_noise_sigma  unit-variance noise times this is `start`
    coefficients      [m (m + 3) / 2] float64, packed rows, see `ebca.export.stages.schedulers`
    """

    timesteps: NDArray[np.float64]
    input_scale: NDArray[np.float64]
    init_noise_sigma: float
    coefficients: NDArray[np.float64]

    @property
    def evaluations(self) -> int:
        return len(self.timesteps)

    def packed(self) -> NDArray[np.float64]:
        """The record as stored in the file: [1 + 2 m + m (m + 3) / 2] float64."""
        return np.concatenate([[self.init_noise_sigma], self.timesteps, self.input_scale, self.coefficients]).astype(
            "<f8"
        )


@dataclass(frozen=True)
class SchedulerTables:
    """All tables of a checkpoint: `records[name][steps]`; alphas_cumprod [num_train_timesteps] float64."""

    config: dict[str, Any]
    alphas_cumprod: NDArray[np.float64]
    records: dict[str, dict[int, TableRecord]]
    minimum_steps: dict[str, int]


def build_tables(
    config: Mapping[str, Any],
    steps: Sequence[int] = DEFAULT_STEPS,
    names: Sequence[str] = tuple(SCHEDULERS),
) -> SchedulerTables:
    """Run the diffusers schedulers on basis vectors.

    config: the checkpoint's `scheduler_config.json`, of any diffusers class; a key that a scheduler does not
        know is ignored, as in diffusers.
    steps: step counts to store. Those below a scheduler's minimum are skipped for that scheduler.
    names: keys of `SCHEDULERS`.

    Raises ParameterError for an unknown name or a bad step count, ExportError when the config is not linear
    (thresholding, dynamic shifting) or a scheduler refuses it.
    """
    unknown = [name for name in names if name not in SCHEDULERS]
    if unknown or not names:
        raise ParameterError(
            f"scheduler names {list(names)!r}: {unknown or 'none given'}", f"choose from {', '.join(SCHEDULERS)}"
        )
    _refuse_nonlinear(config)
    train_steps = int(config.get("num_train_timesteps", 1000))
    wanted = _checked_steps(steps, train_steps)

    records: dict[str, dict[int, TableRecord]] = {}
    minimum_steps: dict[str, int] = {}
    with torch.no_grad():
        for name in names:
            scheduler = _make_scheduler(name, config)
            minimum_steps[name] = _minimum_steps(name, scheduler)
            records[name] = {
                count: _tabulate(name, scheduler, count) for count in wanted if count >= minimum_steps[name]
            }
        reference = _make_scheduler("ddim", config)
    kept = {key: config[key] for key in (*_BETA_KEYS, *_SAMPLING_KEYS) if key in config}
    for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
        kept.setdefault(key, getattr(reference.config, key))
    alphas_cumprod = reference.alphas_cumprod.numpy().astype(np.float64)
    return SchedulerTables(kept, alphas_cumprod, records, minimum_steps)


def _refuse_nonlinear(config: Mapping[str, Any]) -> None:
    for key, why in (
        ("thresholding", "dynamic thresholding depends on the latents"),
        ("use_dynamic_shifting", "the timesteps depend on the image size"),
    ):
        if config.get(key):
            raise ExportError(
                f"the scheduler config has {key}=true, which no table can hold ({why})",
                "set it to false in scheduler_config.json",
            )


def _checked_steps(steps: Sequence[int], train_steps: int) -> list[int]:
    wanted = sorted({int(count) for count in steps})
    if not wanted:
        raise ParameterError("no scheduler steps given", "name at least one, e.g. 50")
    if wanted[0] < 1 or wanted[-1] > train_steps:
        bad = wanted[0] if wanted[0] < 1 else wanted[-1]
        raise ParameterError(
            f"scheduler steps {bad}: a step count lies between 1 and the {train_steps} training timesteps"
        )
    return wanted


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


def _make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    spec = SCHEDULERS[name]
    settings = {**config, **spec.overrides}
    if name == "ddim_inverse" and settings.get("timestep_spacing") == "linspace":
        settings["timestep_spacing"] = "leading"  # the only other one diffusers has for the inverse is "trailing"
    try:
        with _quiet_diffusers():
            scheduler = spec.diffusers_class.from_config(settings)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise ExportError(f"diffusers cannot make scheduler {name!r} from this config: {error}") from error
    return scheduler


def _minimum_steps(name: str, scheduler: Any) -> int:
    if name == "pndm" and not scheduler.config.skip_prk_steps:
        return _PRK_MINIMUM_STEPS  # four Runge-Kutta steps come first
    return SCHEDULERS[name].minimum_steps


def _tabulate(name: str, scheduler: Any, steps: int) -> TableRecord:
    """Run one scheduler at one step count; the object can be used for another."""
    try:
        record = _run_on_basis(name, scheduler, steps)
    except (ValueError, IndexError) as error:
        raise ExportError(f"scheduler {name!r} cannot do {steps} steps with this config: {error}") from error
    if not (np.isfinite(record.coefficients).all() and np.isfinite(record.input_scale).all()):
        raise ExportError(
            f"scheduler {name!r} with {steps} steps gives coefficients that are not finite for this config "
            f"(prediction_type {scheduler.config.prediction_type!r})",
            "leave it out",
        )
    return record


def _run_on_basis(name: str, scheduler: Any, steps: int) -> TableRecord:
    scheduler.set_timesteps(steps)
    _in_double(scheduler)
    timesteps: list[int | float] = scheduler.timesteps.tolist()
    stepped = timesteps
    if name == "ddim_inverse":
        # diffusers' inverse goes from t - r to t, the one EBCA was published with from t to t + r: the same step,
        # named by its other end. The last point starts no step.
        timesteps = timesteps[:-1]
        ratio = scheduler.config.num_train_timesteps // steps
        stepped = [t + ratio for t in timesteps]

    m = len(timesteps)
    init_noise_sigma = float(scheduler.init_noise_sigma)
    # [m + 1, 1, m + 1]: `start`, then the noises. The axis of one: UniPC wants batch and channels.
    basis = torch.eye(m + 1, dtype=torch.float64).unsqueeze(1).as_subclass(_StaysDouble)
    one = torch.ones((), dtype=torch.float64)
    latents = basis[0]
    input_scale = np.empty(m)
    coefficients = np.empty(m * (m + 3) // 2)
    for i, t in enumerate(stepped):
        input_scale[i] = float(scheduler.scale_model_input(one, t))
        latents = scheduler.step(basis[i + 1], t, latents, return_dict=False)[0]
        start = i * (i + 3) // 2
        coefficients[start : start + i + 2] = latents[0, : i + 2].numpy()
    return TableRecord(np.asarray(timesteps, dtype=np.float64), input_scale, init_noise_sigma, coefficients)


class _StaysDouble(torch.Tensor):
    """A float64 tensor that ignores casts: Euler and DPM-Solver "upcast" latents to float32 inside `step`."""

    def to(self, *args: Any, **kwargs: Any) -> _StaysDouble:
        return self


def _in_double(scheduler: Any) -> None:
    """Keep diffusers' float32 constants but do the arithmetic on them in float64.

    The noise levels keep the values that diffusers rounds them to, so tables and the float32 loop share them.
    """
    if isinstance(scheduler, (PNDMScheduler, DDIMScheduler, DDIMInverseScheduler)):
        for buffer in ("alphas_cumprod", "final_alpha_cumprod", "initial_alpha_cumprod"):
            if hasattr(scheduler, buffer):
                setattr(scheduler, buffer, getattr(scheduler, buffer).double())
    else:
        # Not alphas_cumprod: these schedulers derive sigmas from it in set_timesteps, in float32.
        scheduler.sigmas = scheduler.sigmas.double()
