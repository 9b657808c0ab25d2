"""Where a scheduler puts its steps, and how a command line writes it."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ebca.errors import ParameterError

CUSTOM = "_custom"
"""End of the name of a table with a user's spacing."""


@dataclass(frozen=True)
class Spacing:
    """`steps` where the scheduler puts them, or steps at given timesteps, or at given noise levels that end in 0."""

    steps: int = 0
    timesteps: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """Steps."""
        return self.steps or len(self.timesteps) or len(self.sigmas) - 1

    def apply(self, scheduler: Any) -> None:
        """Call `set_timesteps` of a diffusers scheduler. Raises ValueError if it takes no such spacing."""
        given = self.arguments()
        for kind in given:
            if kind not in inspect.signature(scheduler.set_timesteps).parameters:
                raise ValueError(f"diffusers gives it no {kind} of a user")
        scheduler.set_timesteps(**given)

    def arguments(self) -> dict[str, Any]:
        """The arguments of `set_timesteps`."""
        if self.steps:
            return {"num_inference_steps": self.steps}
        return {"timesteps": list(self.timesteps)} if self.timesteps else {"sigmas": list(self.sigmas)}


Named = tuple[str, Spacing]
"""A scheduler's name and a user's spacing."""


def timesteps_of(name: str, values: Sequence[int]) -> Named:
    """Raises ParameterError for timesteps that do not go down."""
    if not values or min(values) < 0 or any(b >= a for a, b in pairwise(values)):
        raise ParameterError(f"timesteps of {name} are {list(values)}", "give whole numbers from 0 that go down")
    return name, Spacing(timesteps=tuple(values))


def sigmas_of(name: str, values: Sequence[float]) -> Named:
    """Raises ParameterError for noise levels that do not go down to 0."""
    falling = all(b < a for a, b in pairwise(values))
    if len(values) < 2 or not all(map(math.isfinite, values)) or not falling or values[-1] != 0:
        raise ParameterError(f"sigmas of {name} are {list(values)}", "give numbers that go down; the last one is 0")
    return name, Spacing(sigmas=tuple(values))


def parsed(flag: str, text: str) -> Named:
    """The spacing of `--timesteps euler=999,749,499,249` or `--sigmas euler=14.6,3.1,0.7,0`.

    Raises:
        ParameterError: anything else.
    """
    name, _, numbers = text.partition("=")
    convert: Callable[[str], Any] = int if flag == "--timesteps" else float
    try:
        values = [convert(number) for number in numbers.split(",")]
    except ValueError:
        name, values = "", []
    if not name:
        example = "euler=999,749,499,249" if flag == "--timesteps" else "euler=14.6,3.1,0.7,0"
        raise ParameterError(f"{flag} is {text!r}", f"write it as in {flag} {example}")
    return timesteps_of(name, values) if flag == "--timesteps" else sigmas_of(name, values)


def parsed_config(entries: Sequence[str]) -> Mapping[str, Any]:
    """The options of `--scheduler-config KEY=VALUE ...`; a value is JSON, or else a text.

    Raises:
        ParameterError: an entry without a key.
    """
    config = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        if not key or not equals:
            raise ParameterError(
                f"--scheduler-config has {entry!r}", "write KEY=VALUE, as in timestep_spacing=trailing"
            )
        config[key] = _value(text)
    return config


def _value(text: str) -> Any:
    """A JSON value, or the text. Python's spelling of true, false and null is what users of diffusers know."""
    python = {"True": True, "False": False, "None": None}
    if text in python:
        return python[text]
    try:
        return json.loads(text)
    except ValueError:
        return text
