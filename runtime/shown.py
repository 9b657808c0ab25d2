"""Short texts of values, for `repr` and for notebooks: an array is its type and shape, not its numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

_ITEMS = 6
_CHARACTERS = 80


class Shown:
    """Base of dataclasses whose `repr` is short: fields with their defaults are left out. They need `repr=False`."""

    def __repr__(self) -> str:
        given = ((field, shown(getattr(self, field.name))) for field in fields(self))  # type: ignore[arg-type]
        texts = [f"{field.name}={text}" for field, text in given if text != _default(field)]
        return f"{type(self).__name__}({', '.join(texts)})"


def shown(value: Any) -> str:
    """A value as short text, as far as possible in the form of Python's own `repr`.

    An array of any library is "float32[1,77,768]", an image "<RGB 512x512>". Long texts and collections are cut.
    """
    if isinstance(value, str):
        return repr(value if len(value) <= _CHARACTERS else f"{value[:_CHARACTERS]}...")
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]" if value.shape else repr(value)
    if hasattr(value, "mode") and hasattr(value, "size"):
        return f"<{value.mode} {value.size[0]}x{value.size[1]}>"
    if isinstance(value, Mapping):
        return "{" + _cut(f"{shown(key)}: {shown(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return f"[{_cut(map(shown, value))}]"
    if isinstance(value, tuple):
        return f"({_cut(map(shown, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _cut(texts: Iterable[str]) -> str:
    listed = list(texts)
    more = [f"... ({len(listed)} in all)"] if len(listed) > _ITEMS else []
    return ", ".join([*listed[:_ITEMS], *more])


def _default(field: Field[Any]) -> str | None:
    if field.default is not MISSING:
        return shown(field.default)
    return None if field.default_factory is MISSING else shown(field.default_factory())
