"""Scheduler tables: everything the runtime needs to know about a diffusers scheduler, as numbers.

Every diffusers scheduler is linear in the initial latents, the noise predictions and the noise that it draws, so after
evaluation i

    x_i = row_i[0] start + sum_{j <= i} row_i[j + 1] e_j + sum_{j <= i} fresh_i[j] z_j

holds for any latents. The real diffusers scheduler is run once on basis vectors, see `ebca.export.scheduler_basis`.
Prediction type, beta schedule, timestep spacing and the order of each solver are all contained in those numbers, and
the runtime computes one weighted sum.

Rows grow with the square of the steps, but schedulers look back over a few evaluations only. So the engine directory
gets a recurrence, whose expanded rows are compared with those of diffusers: `ebca.export.scheduler_recurrence`.

`start` is the initial latents multiplied by `init_noise_sigma`; evaluation i reads `input_scale[i] * x_{i-1}` at
`timesteps[i]`. The stage `ebca.export.stages.schedulers` writes the tables and documents the file layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ebca.engines.contract import limits
from ebca.errors import ExportError, ParameterError
from ebca.export.options import DEFAULT_STEPS
from ebca.export.scheduler_basis import run_on_basis
from ebca.export.scheduler_choice import INVERSE, ONE_STEP, REPLACEMENTS, CheckpointSchedulers, checkpoint_schedulers
from ebca.export.scheduler_recurrence import find
from ebca.export.spacing import CUSTOM, Named, Spacing
from ebca.runtime.sampling.recurrence import Memory, Recurrence, expand

_BETA_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")
_SAMPLING_KEYS = (
    "_class_name",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "skip_prk_steps",
)

# PNDM's Runge-Kutta start: four steps, of which three make four evaluations each.
_PRK_MINIMUM_STEPS = 4
_PRK_MORE_EVALUATIONS = 9

DENSE = ("pndm", "ddim", "ddim_inverse", "euler", "dpmpp_2m", "unipc")
"""Schedulers with a table for every step count from 1 to 200. The others have the common ones."""


@dataclass(frozen=True)
class TableRecord:
    """One scheduler at one step count, m evaluations of the UNet.

    timesteps         [m] float64
    input_scale       [m] float64: the UNet reads input_scale[i] * latents
    init_noise_sigma  unit-variance noise times this is `start`
    recurrence        the weights of each step
    order             evaluations per step; the last step may have fewer
    """

    timesteps: NDArray[np.float64]
    input_scale: NDArray[np.float64]
    init_noise_sigma: float
    recurrence: Recurrence
    order: int = 1

    @property
    def evaluations(self) -> int:
        return len(self.timesteps)

    @property
    def coefficients(self) -> NDArray[np.float64]:
        """[m (m + 3) / 2] float64: the packed rows that the runtime makes of the recurrence."""
        return expand(self.recurrence.of_latents, self.recurrence.of_noises)

    def packed(self) -> NDArray[np.float64]:
        """The record as stored in the file, float64; see `ebca.export.stages.schedulers`."""
        kinds = self.recurrence.of_latents, self.recurrence.of_noises, self.recurrence.of_fresh
        weights = np.concatenate(kinds, axis=1)
        parts = ([self.init_noise_sigma], self.timesteps, self.input_scale, weights.ravel())
        return np.concatenate(parts).astype("<f8")


@dataclass(frozen=True)
class SchedulerTables:
    """All tables of a checkpoint.

    Attributes:
        default: name of the checkpoint's own scheduler, or of what replaces it.
        image_to_image: the default for starts at an intermediate noise level; None if no scheduler can.
        config: what a host may want to know about the checkpoint's scheduler config.
        alphas_cumprod: [num_train_timesteps] float64.
        records: by name and number of steps. All of a name have the same memory.
        minimum_steps: by name.
        left_out: name to the reason why there is no table.
        notices: lines for whoever exports, about everything that differs from the checkpoint's own configuration.
    """

    default: str
    image_to_image: str | None
    config: dict[str, Any]
    alphas_cumprod: NDArray[np.float64]
    records: dict[str, dict[int, TableRecord]]
    minimum_steps: dict[str, int]
    left_out: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def memory(self, name: str) -> Memory:
        """How many latents and noise predictions a step of a scheduler looks back at."""
        return max((record.recurrence.memory for record in self.records[name].values()), default=(1, 1))

    def fresh(self, name: str) -> int:
        """How many draws of noise a step of a scheduler uses; 0: it is deterministic."""
        return max((record.recurrence.fresh for record in self.records[name].values()), default=0)

    def order(self, name: str) -> int:
        """Evaluations per step."""
        return max((record.order for record in self.records[name].values()), default=1)


def build_tables(
    config: Mapping[str, Any],
    steps: Sequence[int] = DEFAULT_STEPS,
    names: Sequence[str] = (),
    *,
    more: Sequence[str] = (),
    common_steps: Sequence[int] | None = None,
    spacings: Sequence[Named] = (),
    inpainting: bool = False,
    xl: bool = False,
    on_scheduler: Callable[[str], None] = lambda name: None,
) -> SchedulerTables:
    """Run the diffusers schedulers on basis vectors. All default step counts of six schedulers take 15 seconds.

    A scheduler that cannot be tabulated with this config is left out, and a notice says why: it is not linear, it
    refuses the config, its coefficients are not finite, or its steps look back too far.

    config: the checkpoint's `scheduler_config.json`, of any diffusers class; a key that a scheduler does not
        know is ignored, as in diffusers.
    steps: step counts to store. Those below a scheduler's minimum are skipped for that scheduler.
    names: names of schedulers, with or without a variant; none for `DEFAULT_NAMES` and the checkpoint's own.
    more: names beside those.
    common_steps: step counts of schedulers that are not in `DENSE`; None: the same.
    spacings: a user's timesteps or noise levels. They make a table "<name>_custom".
    inpainting, xl: as in `ebca.export.scheduler_choice.checkpoint_schedulers`.
    on_scheduler: called with each name before its scheduler is run.

    Raises ParameterError for an unknown name or a bad step count, ExportError when no scheduler is left.
    """
    choice = checkpoint_schedulers(config, inpainting=inpainting, xl=xl)
    for name in (*names, *more):
        choice.spec(name)
    training = int(config.get("num_train_timesteps", 1000))
    dense = _checked_steps(steps, training)
    common = dense if common_steps is None else _checked_steps(common_steps, training)

    records: dict[str, dict[int, TableRecord]] = {}
    minimum_steps: dict[str, int] = {}
    refused: dict[str, ExportError] = {}
    with torch.inference_mode():
        for name in dict.fromkeys((*(names or choice.names), *more)):
            on_scheduler(name)
            try:
                scheduler, eta = choice.make(name), choice.eta(name)
                minimum, most = _minimum_steps(choice, name, scheduler), _most_steps(scheduler)
                wanted = dense if name in DENSE or name == choice.own else common
                counts = [count for count in wanted if minimum <= count <= most]
                records[name] = _records(name, scheduler, [Spacing(steps=count) for count in counts], eta)
                minimum_steps[name] = minimum
            except ExportError as error:
                refused[name] = error
        custom = _custom_records(choice, spacings)
    default = next((name for name in (choice.own, *REPLACEMENTS, *names) if name in records), None)
    if default is None or (default == INVERSE and refused):
        raise next(iter(refused.values()))
    left_out = {name: _reason(name, error) for name, error in refused.items()}
    kept, alphas_cumprod = _beta_schedule(choice, default, config)
    return SchedulerTables(
        default=default,
        image_to_image=next((name for name in (default, *ONE_STEP) if name in ONE_STEP and name in records), None),
        config=kept,
        alphas_cumprod=alphas_cumprod,
        records={**records, **custom},
        minimum_steps={**minimum_steps, **{name: min(by_steps) for name, by_steps in custom.items()}},
        left_out=left_out,
        notices=_notices(choice, default, left_out, minimum_steps),
    )


def _custom_records(choice: CheckpointSchedulers, spacings: Sequence[Named]) -> dict[str, dict[int, TableRecord]]:
    """The tables of a user's spacings, by name and step count. Raises instead of leaving one out: it was asked for."""
    by_name: dict[str, dict[int, Spacing]] = {}
    for name, spacing in spacings:
        if by_name.setdefault(name, {}).setdefault(spacing.count, spacing) is not spacing:
            raise ParameterError(f"two spacings of {name} have {spacing.count} steps", "give one of them")
    return {
        name + CUSTOM: _records(name, choice.make(name), list(by_count.values()), choice.eta(name))
        for name, by_count in by_name.items()
    }


def _beta_schedule(
    choice: CheckpointSchedulers, default: str, config: Mapping[str, Any]
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """The config that the manifest keeps, and alphas_cumprod: DDIM's, whose values are not moved away from zero."""
    try:
        reference = choice.make("ddim")
    except ExportError:
        reference = choice.make(default)
    kept = {key: config[key] for key in (*_BETA_KEYS, *_SAMPLING_KEYS) if key in config}
    for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
        kept.setdefault(key, getattr(reference.config, key))
    return kept, reference.alphas_cumprod.numpy().astype(np.float64)


def _reason(name: str, error: ExportError) -> str:
    """The problem of an error in a sentence that has named the scheduler already."""
    subject = f"scheduler {name!r} "
    return "it " + error.problem.removeprefix(subject) if error.problem.startswith(subject) else error.problem


def _notices(
    choice: CheckpointSchedulers, default: str, left_out: Mapping[str, str], minimum_steps: Mapping[str, int]
) -> tuple[str, ...]:
    lines = []
    if choice.problem is not None:
        lines.append(f"{choice.problem}; {default} is the default instead")
    for name, reason in left_out.items():
        instead = f"; {default} is the default instead" if name == choice.own and choice.problem is None else ""
        lines.append(f"scheduler {name} is left out: {reason}{instead}")
    if default == "pndm" and minimum_steps[default] == _PRK_MINIMUM_STEPS:
        lines.append(
            "pndm starts with Runge-Kutta steps, because the checkpoint's scheduler config does not have "
            f"skip_prk_steps: it makes {_PRK_MORE_EVALUATIONS} evaluations more than steps, and at least "
            f"{_PRK_MINIMUM_STEPS} steps"
        )
    return tuple(lines)


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


def _minimum_steps(choice: CheckpointSchedulers, name: str, scheduler: Any) -> int:
    if name == "pndm" and not scheduler.config.skip_prk_steps:
        return _PRK_MINIMUM_STEPS
    return choice.spec(name).minimum_steps


def _most_steps(scheduler: Any) -> int:
    """LCM and TCD choose their steps among those that their models were distilled with."""
    return int(scheduler.config.get("original_inference_steps") or scheduler.config.num_train_timesteps)


def _records(name: str, scheduler: Any, spacings: Sequence[Spacing], eta: float | None) -> dict[int, TableRecord]:
    """By step count, all with the same memory."""
    memory: Memory = (1, 1)
    records = {}
    # Most steps first: few steps often fit a shorter memory than the scheduler has.
    for spacing in sorted(spacings, key=lambda spacing: -spacing.count):
        record = records[spacing.count] = _tabulate(name, scheduler, spacing, memory, eta)
        memory = record.recurrence.memory
    fresh = max((record.recurrence.fresh for record in records.values()), default=0)
    return {
        count: replace(records[count], recurrence=records[count].recurrence.widened(memory, fresh))
        for count in sorted(records)
    }


def _tabulate(name: str, scheduler: Any, spacing: Spacing, memory: Memory, eta: float | None) -> TableRecord:
    """Run one scheduler at one step count; the object can be used for another. The recurrence has at least `memory`."""
    steps = spacing.count
    try:
        run = run_on_basis(scheduler, spacing, eta)
    except (ValueError, IndexError, TypeError) as error:
        raise ExportError(f"scheduler {name!r} cannot do {steps} steps with this config: {error}") from error
    if not (np.isfinite(run.rows).all() and np.isfinite(run.fresh).all() and np.isfinite(run.input_scale).all()):
        zero_snr = ", rescale_betas_zero_snr" if scheduler.config.get("rescale_betas_zero_snr") else ""
        raise ExportError(
            f"scheduler {name!r} has coefficients that are not finite with {steps} steps of this config "
            f"(prediction_type {scheduler.config.prediction_type!r}{zero_snr})"
        )
    if len(run.timesteps) > limits.TABLE_EVALUATIONS:
        raise ExportError(
            f"scheduler {name!r} makes {len(run.timesteps)} evaluations with {steps} steps, and a table holds "
            f"{limits.TABLE_EVALUATIONS}",
            "give fewer scheduler steps",
        )
    recurrence = find(run.rows, memory, run.fresh)
    if recurrence is None:
        raise ExportError(
            f"scheduler {name!r} looks back at more than {limits.TABLE_LATENTS} latents and {limits.TABLE_NOISES} "
            f"noise predictions with {steps} steps of this config"
        )
    return TableRecord(run.timesteps, run.input_scale, run.init_noise_sigma, recurrence, scheduler.order)
