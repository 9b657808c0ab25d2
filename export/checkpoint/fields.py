"""Fields of configuration files: which JSON values each may have, and one line for a value that is another.

diffusers and transformers fail on a wrong value inside their own code, or take it and compute something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ebca.errors import ModelError


@dataclass(frozen=True)
class Kind:
    """What a field may hold: in words that follow "give", and as a test."""

    words: str
    accepts: Callable[[Any], bool]


def check_fields(config: Mapping[str, Any], kinds: Mapping[str, Kind], what: str) -> None:
    """Raise ModelError for a field that is there with a value of another kind; a field that is absent is right.

    Args:
        what: what the configuration is of, such as "UNet".
    """
    for name, kind in kinds.items():
        if name in config and not kind.accepts(config[name]):
            raise unsupported(what, name, config[name], f"in its configuration, give {kind.words}")


def unsupported(what: str, name: str, value: Any, remedy: str) -> ModelError:
    """The error for one field of a configuration. A long value is cut."""
    shown = repr(value)
    return ModelError(f"unsupported {what}: {name} = {shown if len(shown) <= 120 else shown[:117] + '...'}", remedy)


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


COUNT = Kind("a whole number above 0", is_count)
NUMBER = Kind("a number", is_number)
POSITIVE = Kind("a number above 0", lambda value: is_number(value) and value > 0)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
ABSENT = Kind("null", lambda value: value is None)
OPEN = Kind("anything", lambda value: True)


def one_of(*values: str | None) -> Kind:
    """One of some texts; None stands for null."""
    shown = " or ".join("null" if value is None else f'"{value}"' for value in values)
    return Kind(shown, lambda value: (value is None or isinstance(value, str)) and value in values)


ACTIVATION = one_of("silu", "swish", "mish", "gelu", "relu")


def optional(kind: Kind) -> Kind:
    """A kind, or null."""
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.accepts(value))


def list_of(kind: Kind, length: int | None = None) -> Kind:
    """A list that is not empty, of a kind; with `length`, of that many."""
    amount = "one or more" if length is None else str(length)
    return Kind(
        f"a list, {amount} times {kind.words}",
        lambda value: is_list(value) and all(map(kind.accepts, value)) and _fits(value, length),
    )


def is_list(value: Any) -> bool:
    """Whether a JSON value is a list, or the tuple that diffusers makes of one."""
    return isinstance(value, list | tuple)


def _fits(value: Collection[Any], length: int | None) -> bool:
    return len(value) > 0 if length is None else len(value) == length


def one_or_list(kind: Kind, length: int) -> Kind:
    """A kind for all blocks, or a list with one per block."""
    several = list_of(kind, length)
    return Kind(
        f"{kind.words}, or a list with one for each of the {length} blocks",
        lambda value: kind.accepts(value) or several.accepts(value),
    )
