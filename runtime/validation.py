"""Checks of single values that a caller passes in, and warnings about them."""

import math
import operator
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ebca.errors import ParameterError
from ebca.runtime.schema import parameters as rules


def warn(text: str) -> None:
    """Give a warning about the line that called this package, from any depth inside it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("ebca."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def finite(name: str, value: Any) -> float:
    """`value` as a float. Raises ParameterError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise rules.FINITE_NUMBER.error(field=name, value=str(value))
    return number


def whole(name: str, value: Any) -> int:
    """`value`, any integer type, as an int. Raises ParameterError."""
    try:
        return operator.index(value)
    except TypeError:
        raise rules.WHOLE_NUMBER.error(field=name, value=repr(value)) from None


def flag(name: str, value: Any) -> bool:
    """`value`, True or False (or 1 or 0), as a bool: a text such as "no" would count as true. Raises ParameterError."""
    if not isinstance(value, bool | int | np.bool_ | np.integer) or value not in (0, 1):
        raise rules.TRUE_OR_FALSE.error(field=name, value=repr(value))
    return bool(value)


def callback(name: str, value: Any) -> None:
    """Raise ParameterError unless `value` can be called or is None."""
    if value is not None and not callable(value):
        raise rules.FUNCTION.error(field=name, value=repr(value))


def at_least_one(name: str, value: Any) -> int:
    """`value` as an int that is at least 1. Raises ParameterError."""
    number = whole(name, value)
    if number < 1:
        raise rules.AT_LEAST_ONE.error(field=name, value=number)
    return number


def as_numbers(name: str, value: object, expected: str) -> np.ndarray:
    """`value` as a float32 array. Raises ParameterError if it holds anything but numbers.

    Args:
        name: of the field, for messages.
        value: an array or nested lists.
        expected: description of the array, for messages.
    """
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise rules.NOT_NUMBERS.error(name=name, expected=expected) from None


def each_image(items: str, values: np.ndarray, batch: int) -> np.ndarray:
    """[1 or batch,...] -> [batch,...]. Raises ParameterError for another number; `items` names them in the message."""
    if len(values) not in (1, batch):
        raise rules.COUNT_PER_IMAGE.error(count=len(values), items=items, batch=batch)
    return np.broadcast_to(values, (batch, *values.shape[1:]))


def texts_for_images(name: str, value: str | Sequence[str], batch: int) -> list[str]:
    """One text for all images, or one per image -> `batch` texts. Raises ParameterError."""
    if isinstance(value, bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        raise rules.PROMPT_TYPE.error(name=name, value=repr(value))
    texts = [value] * batch if isinstance(value, str) else list(value)
    for text in texts:
        if not isinstance(text, str):
            raise ParameterError(f"{name} has a text of type {type(text).__name__}", "give a string")
    if len(texts) != batch:
        raise rules.PROMPT_COUNT.error(name=name, count=len(texts), batch=batch)
    return texts
