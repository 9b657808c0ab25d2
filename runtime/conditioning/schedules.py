"""Schedules of gamma and alpha over the evaluations, as the authors of EBCA define them.

Entry i belongs to evaluation i of the UNet. The authors compute `steps` + 1 values because PNDM, their scheduler, makes
one evaluation more than it has steps; other schedulers use the first ones. `tau` is a share of the steps, not of the
evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ebca.runtime.schema import parameters as rules

Kind = Literal["constant", "step", "reverse_step", "linear", "exponential"]


@dataclass(frozen=True)
class Schedule:
    """A value that changes over the evaluations. Create one with a class method below; `parameter` is tau or ratio.

    Raises:
        ParameterError: a number that is not finite, or a tau outside [0, 1].
    """

    kind: Kind
    value: float
    parameter: float = 0.0

    def __post_init__(self) -> None:
        for field, number in (("value", self.value), ("tau" if self._has_tau else "ratio", self.parameter)):
            if not _is_number(number) or not math.isfinite(number):
                raise rules.SCHEDULE_NUMBER.error(name=f"Schedule.{self.kind}", field=field, value=repr(number))
        if self._has_tau and not 0.0 <= self.parameter <= 1.0:
            raise rules.SCHEDULE_TAU.error(name=f"Schedule.{self.kind}", value=repr(self.parameter))

    @property
    def _has_tau(self) -> bool:
        return self.kind in ("step", "reverse_step")

    @classmethod
    def constant(cls, value: float) -> Schedule:
        """`value` at every evaluation."""
        return cls("constant", value)

    @classmethod
    def step(cls, value: float, tau: float) -> Schedule:
        """0 for i < int(steps tau), then `value`: starts late."""
        return cls("step", value, tau)

    @classmethod
    def reverse_step(cls, value: float, tau: float) -> Schedule:
        """`value` for i < int(steps tau), then 0: stops early. With tau = 1, evaluations beyond `steps` get 0."""
        return cls("reverse_step", value, tau)

    @classmethod
    def linear(cls, value: float, ratio: float) -> Schedule:
        """value + ratio i."""
        return cls("linear", value, ratio)

    @classmethod
    def exponential(cls, value: float, ratio: float) -> Schedule:
        """value ratio^i."""
        return cls("exponential", value, ratio)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read "kind:value" or "kind:value:parameter", such as "constant:0.01" or "step:1.3:0.2".

        Raises:
            ParameterError: any other text.
        """
        kind, *numbers = text.split(":")
        try:
            value, *parameter = map(float, numbers)
        except ValueError:
            kind, value, parameter = "", 0.0, []
        if kind == "constant" and not parameter:
            return cls.constant(value)
        if kind in get_args(Kind) and kind != "constant" and len(parameter) == 1:
            return cls(cast(Kind, kind), value, parameter[0])
        raise rules.SCHEDULE_TEXT.error(value=text)

    def values(self, steps: int, evaluations: int) -> NDArray[np.float32]:
        """One value per evaluation, float32 [evaluations].

        Args:
            steps: scheduler steps.
            evaluations: number of UNet evaluations.

        Raises:
            ParameterError: a value outside the range of float32.
        """
        exact = self._exact(steps, evaluations)
        return _finite_float32(exact, f"Schedule.{self.kind}({self.value}, {self.parameter})")

    def _exact(self, steps: int, evaluations: int) -> NDArray[np.float64]:
        i = np.arange(evaluations)
        switch = int(steps * self.parameter) if self._has_tau else 0
        match self.kind:
            case "constant":
                exact = np.full(evaluations, float(self.value))
            case "step":
                exact = np.where(i < switch, 0.0, self.value)
            case "reverse_step":
                exact = np.where(i < switch, self.value, 0.0)
            case "linear":
                exact = self.value + self.parameter * i
            case "exponential":
                with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                    exact = self.value * np.power(float(self.parameter), i)
        return exact


Gamma = float | Sequence[float] | Schedule
"""A constant, one value per evaluation, or a schedule."""


def to_json(gamma: Gamma) -> Any:
    """The JSON form: a number, a list, or an object."""
    if isinstance(gamma, Schedule):
        return {"schedule": gamma.kind, "value": float(gamma.value), "parameter": float(gamma.parameter)}
    return np.asarray(gamma, np.float64).tolist()


def from_json(data: Any, name: str) -> Gamma:
    """Read the form that `to_json` writes, or a text as `Schedule.parse` reads it.

    Args:
        data: from JSON.
        name: of the field, for messages.

    Raises:
        ParameterError: anything else.
    """
    if isinstance(data, str):
        return Schedule.parse(data)
    if isinstance(data, dict):
        known = {"schedule", "value", "parameter"}
        if "schedule" not in data or not data.keys() <= known or data["schedule"] not in get_args(Kind):
            raise rules.SCHEDULE_TYPE.error(name=name, value=repr(data))
        return Schedule(data["schedule"], data.get("value", 0.0), data.get("parameter", 0.0))
    if isinstance(data, list):
        return tuple(data)
    if _is_number(data):
        return float(data)
    raise rules.SCHEDULE_TYPE.error(name=name, value=repr(data))


def resolve(
    value: float | Sequence[float] | NDArray[np.floating] | Schedule,
    steps: int,
    evaluations: int,
    name: str,
    scheduler: str = "the scheduler",
) -> NDArray[np.float32]:
    """A gamma or an alpha as one value per evaluation, float32 [evaluations].

    Args:
        value: a number (constant), a sequence with exactly `evaluations` numbers, or a Schedule.
        steps: scheduler steps.
        evaluations: number of UNet evaluations.
        name, scheduler: for messages, for example "gamma_attn" and "pndm".

    Raises:
        ParameterError: a wrong length, a wrong type, or a value that is not finite.
    """
    if isinstance(value, Schedule):
        return _finite_float32(value._exact(steps, evaluations), name)
    try:
        given = np.asarray(value)
    except (TypeError, ValueError):
        given = None
    if given is None or given.ndim > 1 or given.dtype.kind not in "fiu":
        raise rules.SCHEDULE_TYPE.error(name=name, value=repr(value))
    exact = given.astype(np.float64)
    if exact.ndim == 0:
        exact = np.full(evaluations, float(exact))
    elif len(exact) != evaluations:
        raise rules.SCHEDULE_LENGTH.error(
            name=name, count=len(exact), scheduler=scheduler, steps=steps, evaluations=evaluations
        )
    return _finite_float32(exact, name)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _finite_float32(exact: NDArray[np.float64], name: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = exact.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise rules.SCHEDULE_VALUE.error(name=name, value=str(exact[bad[0]]), index=int(bad[0]))
    return values
