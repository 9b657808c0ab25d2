"""Values of a JSON document that are not trusted: each is read as the type and in the range that it must have.

    vae = Entry(data, "").get("vae")
    vae["scaling_factor"].number(1e-6, 1e6)

raises "vae.scaling_factor is 'abc' instead of a number from 1e-06 to 1e+06" for such a value. Members that nobody reads
are not looked at.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ebca.engines.contract import limits
from ebca.errors import EngineError

_PLAIN = re.compile(r"\w+", re.ASCII)
# They would break the line of an error message.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SHOWN = 60


@dataclass(frozen=True)
class Entry:
    """A value, and where in the document it is. Every method raises EngineError if the value is another one."""

    value: Any
    path: str

    def __getitem__(self, name: str) -> "Entry":
        """A member that must be there."""
        members = self._object()
        if name not in members:
            raise EngineError(f"{self._member(name)} is missing")
        return Entry(members[name], self._member(name))

    def get(self, name: str) -> "Entry | None":
        """A member; None if it is missing or null."""
        value = self._object().get(name)
        return None if value is None else Entry(value, self._member(name))

    def items(self) -> Iterator[tuple[str, "Entry"]]:
        """The members of an object. Their names are checked as `name` does."""
        for name, value in self._object().items():
            _check_name(name, f"a name in {self.path}", limits.PATH_BYTES)
            yield name, Entry(value, self._member(name))

    def elements(self) -> Iterator["Entry"]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            self.refuse("a list")
        for index, value in enumerate(self.value):
            yield Entry(value, f"{self.path}[{index}]")

    def text(self) -> str:
        """Any string."""
        if not isinstance(self.value, str):
            self.refuse("a text")
        return str(self.value)

    def name(self) -> str:
        """A string that is short, not empty, and one line."""
        return _check_name(self.text(), self.path, limits.NAME_BYTES)

    def names(self) -> tuple[str, ...]:
        """A list of names, each once."""
        found = tuple(element.name() for element in self.elements())
        seen = set[str]()
        for name in found:
            if name in seen:
                raise EngineError(f"{self.path} has {spelled(name)} twice")
            seen.add(name)
        return found

    def choice(self, *choices: str) -> str:
        """One of these strings."""
        if not isinstance(self.value, str) or self.value not in choices:
            self.refuse(" or ".join(choices))
        return str(self.value)

    def boolean(self) -> bool:
        if not isinstance(self.value, bool):
            self.refuse("true or false")
        return bool(self.value)

    def integer(self, low: int, high: int) -> int:
        """An integer from `low` to `high`; 2.0 is none."""
        if type(self.value) is not int or not low <= self.value <= high:
            self.refuse(f"an integer from {low} to {high}")
        return int(self.value)

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number from `low` to `high`."""
        needed = "a finite number" if math.isinf(high) else f"a number from {low:g} to {high:g}"
        if type(self.value) not in (int, float):
            self.refuse(needed)
        value = float(self.value)
        if not math.isfinite(value) or not low <= value <= high:
            self.refuse(needed)
        return value

    def refuse(self, needed: str) -> None:
        """Raise EngineError: the value is not what is needed."""
        raise EngineError(f"{self.path or 'the document'} is {spelled(self.value)} instead of {needed}")

    def _object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            self.refuse("an object")
        found: dict[str, Any] = self.value
        return found

    def _member(self, name: str) -> str:
        if not _PLAIN.fullmatch(name):
            return f"{self.path}[{spelled(name)}]"
        return f"{self.path}.{name}" if self.path else name


def _check_name(name: str, what: str, limit: int) -> str:
    if not name or len(name.encode()) > limit or _CONTROL.search(name):
        raise EngineError(f"{what} is {spelled(name)} instead of a line of at most {limit} bytes")
    return name


def spelled(value: Any) -> str:
    """A value as messages show it: on one line, and short."""
    if isinstance(value, dict | list):
        return ("an object" if isinstance(value, dict) else "a list") + (" that is empty" if not value else "")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
