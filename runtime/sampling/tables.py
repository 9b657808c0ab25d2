"""Sampling from scheduler tables: one weighted sum per step, equal to diffusers by construction.

The tables are written at export (`ebca.export.schedulers` documents the file layout and why a scheduler is a
table at all). After evaluation i

    x_i = row_i[0] start + sum_{j <= i} row_i[j + 1] e_j

with `start` the initial latents times `init_noise_sigma` and e_j the guided noise predictions so far.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebca.errors import EngineError, ParameterError
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
    "unipcmultistep": "unipc",
}


@dataclass(frozen=True)
class SchedulerTable:
    """One scheduler at one step count: m = `evaluations` runs of the UNet (PNDM: one more than `steps`).

    timesteps         [m] float64, what the UNet gets
    input_scale       [m] float64: the UNet sees input_scale[i] * latents
    init_noise_sigma  unit-variance noise times this is `start`
    coefficients      [m (m + 3) / 2] float64, packed rows: row i has i + 2 values and starts at i (i + 3) / 2
    skipped           evaluations left out at the start
    """

    name: str
    steps: int
    timesteps: NDArray[np.float64]
    input_scale: NDArray[np.float64]
    init_noise_sigma: float
    coefficients: NDArray[np.float64]

    skipped: int = 0

    @property
    def evaluations(self) -> int:
        """How often the UNet runs."""
        return len(self.timesteps)

    @property
    def remaining(self) -> int:
        """Steps that are run: all but those that `after` left out."""
        return self.steps - self.skipped

    def row(self, i: int) -> NDArray[np.float64]:
        """[i + 2] float64: weights of start, e_0 .. e_i in the latents after evaluation i."""
        if not 0 <= i < self.evaluations:
            raise ParameterError(
                f"evaluation {i}: {self.name} with {self.steps} steps has evaluations 0 to {self.evaluations - 1}"
            )
        begin = i * (i + 3) // 2
        return self.coefficients[begin : begin + i + 2]

    def after(self, begin: int) -> SchedulerTable:
        """What is left of this table for a start at evaluation `begin` from latents of that noise level.

        Raises:
            ParameterError: `begin` is out of range, or it is not 0 and the scheduler is a multistep one, whose first
                evaluations need another table.
        """
        if not 0 <= begin < self.evaluations:
            raise ParameterError(f"{self.name} with {self.steps} steps cannot start at evaluation {begin}")
        if begin == 0:
            return replace(self, init_noise_sigma=1.0)
        before, rows = self.row(begin - 1), [np.ones(1)]
        for i in range(begin, self.evaluations):
            row = self.row(i)
            keep = row[0] / before[0]
            # In a one-step scheduler all that lies behind a step is in the latents it starts from.
            if not np.allclose(row[:-1], keep * before, rtol=1e-9, atol=1e-12):
                raise rules.SCHEDULER_STARTS_AT_FIRST_STEP.error(scheduler=self.name)
            rows.append(np.append(keep * rows[-1], row[-1]))
            before = row
        return SchedulerTable(
            self.name,
            self.steps,
            self.timesteps[begin:],
            self.input_scale[begin:],
            1.0,
            np.concatenate(rows[1:]),
            skipped=begin,
        )

    def add_noise(
        self, clean: NDArray[np.float32], noise: NDArray[np.float32], alphas_cumprod: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Clean latents [*shape] at the noise level where this table starts, float32.

        alphas_cumprod: [num_train_timesteps], see `load_alphas_cumprod`.
        """
        scale = float(self.input_scale[0])
        # Schedulers that scale their input have latents clean + sigma noise, and scale by 1 / sqrt(1 + sigma^2).
        alpha = scale**2 if scale != 1.0 else float(alphas_cumprod[int(self.timesteps[0])])
        mixed = np.sqrt(alpha) * clean.astype(np.float64) + np.sqrt(1 - alpha) * noise
        return (mixed / scale).astype(np.float32)


def available_schedulers(section: Mapping[str, Any]) -> list[str]:
    """The names in a manifest's scheduler section."""
    return list(section.get("tables", {}))


def normalise_name(name: str) -> str:
    """A name as users write it -> the name in the manifest: "DPM++ 2M" -> "dpmpp_2m", "plms" -> "pndm"."""
    key = re.sub(r"[\s_\-]+", "", name.strip().lower()).removesuffix("scheduler")
    return _ALIASES.get(key) or _ALIASES.get(key.replace("++", "pp")) or key


def load_table(directory: Path, section: Mapping[str, Any], name: str, steps: int) -> SchedulerTable:
    """Read one table of an engine directory.

    directory: the engine directory.
    section: the manifest's scheduler section, as `ebca.export.schedulers.write_tables` returns it.
    name: a scheduler's name or alias, in any case. steps: the number of sampling steps.

    Raises ParameterError for a name or step count that is not stored, EngineError for a damaged section or
    file.
    """
    tables = section.get("tables")
    if not isinstance(tables, Mapping) or not tables:
        raise EngineError(f"the manifest in {directory} has no scheduler tables", "export the engine again")
    key = normalise_name(name) if isinstance(name, str) else None
    if key not in tables:
        raise rules.SCHEDULER_UNKNOWN.error(value=name, choices=", ".join(tables))
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise rules.STEPS_BELOW_ONE.error(value=repr(steps))
    try:
        offset, evaluations = _place(tables[key], key, int(steps))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the manifest in {directory} has a damaged table entry for {key!r}: {error!r}") from error
    # More than any scheduler needs; without a bound a damaged manifest could ask for gigabytes.
    if offset < 0 or not 1 <= evaluations <= 4 * steps + 16:
        raise EngineError(
            f"the manifest in {directory} says {key} with {steps} steps has {evaluations} evaluations "
            f"at offset {offset}, which cannot be",
            "export the engine again",
        )
    count = 1 + 2 * evaluations + evaluations * (evaluations + 3) // 2
    values = _read_values(directory, str(tables[key]["file"]), offset, count)
    timesteps, input_scale, coefficients = np.split(values[1:], [evaluations, 2 * evaluations])
    return SchedulerTable(key, int(steps), timesteps, input_scale, float(values[0]), coefficients)


def _place(entry: Mapping[str, Any], scheduler: str, steps: int) -> tuple[int, int]:
    """Offset and number of evaluations of a stored table.

    Raises ParameterError for a step count that is not stored, and whatever a damaged entry leads to.
    """
    by_steps, minimum, _ = entry["steps"], int(entry.get("minimum_steps", 1)), entry["file"]
    stored = sorted(int(count) for count in by_steps)
    if str(steps) not in by_steps:
        if steps < minimum:
            raise rules.STEPS_BELOW_MINIMUM.error(value=steps, scheduler=scheduler, minimum=minimum)
        nearest = min(stored, key=lambda count: (abs(count - steps), count), default=None)
        if nearest is None:
            raise rules.NO_STEPS_STORED.error(scheduler=scheduler, count=steps)
        raise rules.STEPS_NOT_STORED.error(scheduler=scheduler, count=steps, nearest=nearest)
    table = by_steps[str(steps)]
    return int(table["offset"]), int(table["evaluations"])


def load_alphas_cumprod(directory: Path, section: Mapping[str, Any]) -> NDArray[np.float64]:
    """[num_train_timesteps] float64: the product of (1 - beta) up to each training timestep.

    Raises EngineError when the file is missing, damaged or of the wrong length.
    """
    try:
        file, length = str(section["alphas_cumprod"]), int(section["config"]["num_train_timesteps"])
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"the manifest in {directory} has a damaged scheduler section: {error!r}") from error
    return _read_values(directory, file, 0, length)


def _read_values(directory: Path, file: str, offset: int, count: int) -> NDArray[np.float64]:
    """`count` float64 values from value `offset` of a raw file inside the engine directory; read-only."""
    path = (directory / file).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise EngineError(f"the manifest names the scheduler file {file!r}, which is outside {directory}")
    try:
        with path.open("rb") as stream:
            stream.seek(8 * offset)
            data = stream.read(8 * count)
    except OSError as error:
        raise EngineError(f"cannot read the scheduler file {path}: {error}", "export the engine again") from error
    if len(data) != 8 * count:
        raise EngineError(
            f"the scheduler file {path} is cut short: {count} values expected at {offset}, {len(data) // 8} found",
            "copy or export the engine again",
        )
    values = np.frombuffer(data, dtype="<f8").astype(np.float64, copy=False)
    if not np.isfinite(values).all():
        raise EngineError(f"the scheduler file {path} holds values that are not finite", "export the engine again")
    return values
