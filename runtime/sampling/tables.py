"""Scheduler tables of an engine directory: one weighted sum per evaluation, equal to diffusers by construction.

The export writes the tables; docs/engine-directory.md describes the file. After evaluation i the latents are

    x_i = known_i + sum_{j <= i} row_i[j + 1] e_j

where e_j are the guided noise predictions so far, and known_i is what does not depend on them: row_i[0] start, with
`start` the initial latents times `init_noise_sigma`, and in a stochastic scheduler also the noise drawn so far (see
`ebca.runtime.sampling.known`). The file has a compact form of the rows, see `ebca.runtime.sampling.recurrence`; they
are expanded when a table is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebca.engines.contract import limits
from ebca.engines.contract.files import check_path
from ebca.errors import EbcaError, EngineError, ParameterError
from ebca.runtime.sampling.recurrence import Recurrence, expand
from ebca.runtime.schema import parameters as rules

INVERSE = "ddim_inverse"
"""The scheduler that goes from images to noise."""

_ALIASES = {
    "plms": "pndm",
    "dpmpp2m": "dpmpp_2m",
    "dpmsolver++": "dpmpp_2m",
    "dpmsolvermultistep": "dpmpp_2m",
    "ddiminverse": "ddim_inverse",
    "eulerdiscrete": "euler",
    "eulera": "euler_ancestral",
    "eulerancestral": "euler_ancestral",
    "eulerancestraldiscrete": "euler_ancestral",
    "heundiscrete": "heun",
    "dpmpp2msde": "dpmpp_2m_sde",
    "dpmppsde": "dpmpp_sde",
    "dpmsolversde": "dpmpp_sde",
    "unipcmultistep": "unipc",
}


@dataclass(frozen=True)
class SchedulerTable:
    """One scheduler at one step count. It makes m = `evaluations` UNet evaluations (PNDM: one more than `steps`).

    Attributes:
        name: in the manifest.
        steps: scheduler steps.
        timesteps: [m] float64, inputs of the UNet.
        input_scale: [m] float64; the UNet's input is input_scale[i] * latents.
        init_noise_sigma: `start` is unit-variance noise times this.
        coefficients: [m (m + 3) / 2] float64, packed rows; row i has i + 2 values and starts at i (i + 3) / 2.
        recurrence: what the rows were expanded from.
        order: evaluations per step; the last step may have fewer.
        skipped: steps skipped at the start.
    """

    name: str
    steps: int
    timesteps: NDArray[np.float64]
    input_scale: NDArray[np.float64]
    init_noise_sigma: float
    coefficients: NDArray[np.float64]
    recurrence: Recurrence
    order: int = 1
    skipped: int = 0

    @property
    def evaluations(self) -> int:
        """Number of UNet evaluations."""
        return len(self.timesteps)

    @property
    def remaining(self) -> int:
        """Steps to run: all but those that `after` skips."""
        return self.steps - self.skipped

    @property
    def stochastic(self) -> bool:
        """Whether the scheduler draws noise at its steps."""
        return self.recurrence.of_fresh.shape[1] > 0

    def scale_after(self, index: int) -> float:
        """What the UNet's input after an evaluation is, as a multiple of the latents; 1 after the last one."""
        return float(self.input_scale[index + 1]) if index + 1 < self.evaluations else 1.0

    def row(self, i: int) -> NDArray[np.float64]:
        """[i + 2] float64: weights of start, e_0 .. e_i in the latents after evaluation i.

        Raises:
            ParameterError: `i` is out of range.
        """
        if not 0 <= i < self.evaluations:
            raise ParameterError(
                f"{self.name} with {self.steps} steps has no evaluation {i}", f"give 0 to {self.evaluations - 1}"
            )
        begin = i * (i + 3) // 2
        return self.coefficients[begin : begin + i + 2]

    def weights(self, i: int) -> NDArray[np.float64]:
        """[i + 2] float64: as `row`, but with the weight of what a sampler adds the noise predictions to: `start`, or
        in a stochastic scheduler known_i, which has that weight in it already."""
        row = self.row(i)
        return np.append(1.0, row[1:]) if self.stochastic else row

    def after(self, begin: int) -> SchedulerTable:
        """The rest of this table for a start at step `begin`, from latents of that noise level.

        Raises:
            ParameterError: `begin` is out of range, or it is above 0 and the scheduler is a multistep scheduler, which
                needs the noise predictions before.
        """
        first = begin * self.order
        if not (0 <= begin < self.steps and first < self.evaluations):
            raise ParameterError(
                f"{self.name} with {self.steps} steps cannot start at step {begin}", f"give 0 to {self.steps - 1}"
            )
        if begin == 0:
            return replace(self, init_noise_sigma=1.0)
        if not self.recurrence.starts_at(first):
            raise rules.SCHEDULER_STARTS_AT_FIRST_STEP.error(scheduler=self.name)
        rest = self.recurrence.after(first)
        return replace(
            self,
            timesteps=self.timesteps[first:],
            input_scale=self.input_scale[first:],
            init_noise_sigma=1.0,
            coefficients=expand(rest.of_latents, rest.of_noises),
            recurrence=rest,
            skipped=begin,
        )

    def add_noise(
        self, clean: NDArray[np.float32], noise: NDArray[np.float32], alphas_cumprod: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Noise clean latents [*shape] to the noise level where this table starts; float32 [*shape].

        Args:
            clean, noise: [*shape] float32.
            alphas_cumprod: [num_train_timesteps], see `load_alphas_cumprod`.
        """
        scale = float(self.input_scale[0])
        # Schedulers that scale their input use latents clean + sigma noise, and scale by 1 / sqrt(1 + sigma^2).
        alpha = scale**2 if scale != 1.0 else float(alphas_cumprod[int(self.timesteps[0])])
        mixed = np.sqrt(alpha) * clean.astype(np.float64) + np.sqrt(1 - alpha) * noise
        return (mixed / scale).astype(np.float32)


def available_schedulers(section: Mapping[str, Any]) -> list[str]:
    """The names in a manifest's scheduler section."""
    return list(section.get("tables", {}))


def default_steps(section: Mapping[str, Any]) -> int:
    """The steps of a request that does not say."""
    return int(section.get("default_steps", rules.DEFAULT_STEPS))


def stored_steps(section: Mapping[str, Any], name: str) -> list[int]:
    """The step counts that one of `available_schedulers` has a table for, ascending."""
    return sorted(int(count) for count in section["tables"][name]["steps"])


def normalise_name(name: str) -> str:
    """Map a name as users write it to the manifest's: "DPM++ 2M" -> "dpmpp_2m", "plms" -> "pndm"."""
    key = re.sub(r"[\s_\-]+", "", name.strip().lower()).removesuffix("scheduler")
    spelled = key.replace("++", "pp")
    return _ALIASES.get(key) or _ALIASES.get(spelled) or spelled


def find_scheduler(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that a user means by `name`; None if it is not among them."""
    return next((one for one in names if normalise_name(one) == normalise_name(name)), None)


def unknown_scheduler(section: Mapping[str, Any], name: object, choices: Iterable[str]) -> EbcaError:
    """The error about a scheduler that an engine does not have; it says why if the export left the scheduler out.

    Args:
        section: the manifest's scheduler section.
        name: what a user asked for.
        choices: the names to offer.
    """
    left_out = section.get("left_out", {})
    key = find_scheduler(name, left_out) if isinstance(name, str) else None
    available = ", ".join(choices)
    if key is None:
        return rules.SCHEDULER_UNKNOWN.error(value=name, choices=available)
    return rules.SCHEDULER_LEFT_OUT.error(value=name, reason=left_out[key], choices=available)


def load_table(directory: Path, section: Mapping[str, Any], name: str, steps: int) -> SchedulerTable:
    """Read one table of an engine directory.

    Args:
        directory: the engine directory.
        section: the manifest's scheduler section.
        name: the scheduler's name or an alias, in any case.
        steps: scheduler steps.

    Raises:
        ParameterError: a name or a step count that is not stored.
        EngineError: a damaged section or file.
    """
    tables = section.get("tables")
    if not isinstance(tables, Mapping) or not tables:
        raise EngineError(f"the manifest in {directory} has no scheduler tables", "export the engine again")
    key = find_scheduler(name, tables) if isinstance(name, str) else None
    if key is None:
        raise unknown_scheduler(section, name, tables)
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise rules.STEPS_BELOW_ONE.error(value=repr(steps))
    place = _place(directory, section, key, int(steps))
    m, latents, noises = place.evaluations, place.latents, place.noises
    values = _read_values(directory, place.file, place.offset, place.values(m), place.total)
    weights = np.split(values[1 + 2 * m :].reshape(m, -1), [latents, latents + noises], axis=1)
    recurrence = Recurrence(*weights)
    coefficients = expand(recurrence.of_latents, recurrence.of_noises)
    if not np.isfinite(coefficients).all():
        raise EngineError(
            f"the table of {key} with {steps} steps in {directory} has coefficients that are not finite",
            "export the engine again",
        )
    timesteps, input_scale = values[1 : 1 + m], values[1 + m : 1 + 2 * m]
    return SchedulerTable(
        key, int(steps), timesteps, input_scale, float(values[0]), coefficients, recurrence, place.order
    )


@dataclass(frozen=True)
class _Place:
    """Where a record lies, and how it is read.

    Attributes:
        file: relative to the engine directory.
        latents, noises: how many of each a scheduler step looks back at.
        fresh: how many draws of noise it uses.
        order: evaluations per step.
        evaluations: of the record.
        offset: of the record, in float64 values.
        total: float64 values of the whole file.
    """

    file: str
    latents: int
    noises: int
    fresh: int = 0
    order: int = 1
    evaluations: int = 0
    offset: int = 0
    total: int = 0

    def values(self, evaluations: int) -> int:
        """The size of a record in float64 values."""
        return 1 + evaluations * (2 + self.latents + self.noises + self.fresh)


def _place(directory: Path, section: Mapping[str, Any], scheduler: str, steps: int) -> _Place:
    """Find a record by the manifest's entry of its scheduler, and check every value of that entry that is used.

    Raises:
        ParameterError: a step count that is not stored.
        EngineError: a damaged entry.
    """
    try:
        entry, timesteps = section["tables"][scheduler], _whole(section["config"]["num_train_timesteps"])
        memory, minimum = entry["memory"], _whole(entry.get("minimum_steps", 1))
        start = _Place(
            str(entry["file"]),
            _whole(memory["latents"]),
            _whole(memory["noises"]),
            _whole(memory.get("fresh_noises") or 0),
            _whole(entry.get("order") or 1),
        )
        stored = {int(count): _whole(evaluations) for count, evaluations in entry["steps"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"the manifest in {directory} has a damaged table entry for {scheduler!r}: {error!r}",
            "export the engine again",
        ) from error
    # Without bounds, a damaged manifest could request gigabytes.
    if not (
        1 <= start.latents <= limits.TABLE_LATENTS
        and 1 <= start.noises <= limits.TABLE_NOISES
        and 0 <= start.fresh <= limits.TABLE_FRESH_NOISES
        and 1 <= start.order <= limits.TABLE_ORDER
    ):
        raise EngineError(
            f"the manifest in {directory} has an impossible table entry: a step of {scheduler} has {start.order} "
            f"evaluations, and looks back at {start.latents} latents, {start.noises} noise predictions and "
            f"{start.fresh} draws",
            "export the engine again",
        )
    for count, evaluations in stored.items():
        if not (count >= 1 and 1 <= evaluations <= min(4 * count + 16, limits.TABLE_EVALUATIONS)):
            raise EngineError(
                f"the manifest in {directory} has an impossible table entry: {scheduler} with {count} steps has "
                f"{evaluations} evaluations",
                "export the engine again",
            )
    if steps not in stored:
        if steps < minimum:
            raise rules.STEPS_BELOW_MINIMUM.error(value=steps, scheduler=scheduler, minimum=minimum)
        if steps > timesteps:
            raise rules.STEPS_ABOVE_TRAINING.error(value=steps, scheduler=scheduler, timesteps=timesteps)
        nearest = min(stored, key=lambda count: (abs(count - steps), count), default=None)
        if nearest is None:
            raise rules.NO_STEPS_STORED.error(scheduler=scheduler, count=steps)
        raise rules.STEPS_NOT_STORED.error(scheduler=scheduler, count=steps, nearest=nearest)
    # Records lie in the order of their step counts.
    offset = sum(start.values(evaluations) for count, evaluations in stored.items() if count < steps)
    total = sum(start.values(evaluations) for evaluations in stored.values())
    return replace(start, evaluations=stored[steps], offset=offset, total=total)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def load_alphas_cumprod(directory: Path, section: Mapping[str, Any]) -> NDArray[np.float64]:
    """[num_train_timesteps] float64: the product of (1 - beta) up to each training timestep.

    Raises:
        EngineError: the file is missing, damaged or of the wrong length.
    """
    try:
        file, length = str(section["alphas_cumprod"]), int(section["config"]["num_train_timesteps"])
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"the manifest in {directory} has a damaged scheduler section: {error!r}", "export the engine again"
        ) from error
    return _read_values(directory, file, 0, length, length)


def _read_values(directory: Path, file: str, offset: int, count: int, total: int) -> NDArray[np.float64]:
    """`count` float64 values from value `offset` of a raw file of `total` values in the engine directory; read-only.

    Another size of the file means that the places of its records are not those that the manifest tells.
    """
    check_path(file)
    path = directory / file
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(8 * offset)
            data = stream.read(8 * count)
    except OSError as error:
        raise EngineError(f"cannot read the scheduler file {path}: {error}", "export the engine again") from error
    if size != 8 * total or len(data) != 8 * count:
        raise EngineError(
            f"the scheduler file {path} has {size} bytes instead of {8 * total}", "copy or export the engine again"
        )
    values = np.frombuffer(data, dtype="<f8").astype(np.float64, copy=False)
    if not np.isfinite(values).all():
        raise EngineError(f"the scheduler file {path} holds values that are not finite", "export the engine again")
    return values
