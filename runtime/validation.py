"""Numbers that a caller passed in, checked."""

import math
import operator
from typing import Any

import numpy as np

from ebca.errors import ParameterError


def finite(name: str, value: Any) -> float:
    """`value` as a float."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ParameterError(f"{name} is {value}", "give a finite number")
    return number


def whole(name: str, value: Any) -> int:
    """`value` as an int, numpy's included."""
    try:
        return operator.index(value)
    except TypeError:
        raise ParameterError(f"{name} is {value!r}", "give a whole number") from None


def as_numbers(name: str, value: object, expected: str) -> np.ndarray:
    """A caller's `value` as float32. Raises ParameterError where it holds anything else than numbers."""
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise ParameterError(f"{name} is not an array of numbers", f"give {expected}") from None
