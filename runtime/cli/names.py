"""Names of result files: placeholders, and numbers where several files would have one name."""

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ebca.errors import ParameterError

DEFAULT = Path("{number:04}-{slug}-{seed}.png")
"""The name of an image in a folder of images."""

PER_RUN = ("number", "slug", "seed")
PER_IMAGE = (*PER_RUN, "index")

_SLUG_LENGTH = 40
_FORMAT = re.compile(r"[<>]?0?\d{0,2}(\.\d{1,2})?")


def uses(flag: str, template: Path | None, field: str) -> bool:
    """Whether the name that an option gives has a placeholder. Raises ParameterError for braces that are none."""
    return template is not None and field in _fields(flag, template)


def expand(flag: str, template: Path, values: Sequence[Mapping[str, Any]]) -> list[Path]:
    """One file per set of values. If names would be equal, they get -0, -1, ... before the suffix.

    Args:
        flag: of the template, for messages.
        template: a path with any of the placeholders that the values have, such as "{seed:04}"; "{{" is a brace.
        values: by placeholder.

    Raises:
        ParameterError: a placeholder that does not exist, or a format that does not fit it.
    """
    text = template.as_posix()
    if unknown := sorted(_fields(flag, template) - values[0].keys()):
        known = ", ".join(f"{{{name}}}" for name in values[0])
        raise ParameterError(
            f"{flag} '{text}' has the placeholder {{{unknown[0]}}}", f"choose from {known}, or write {{{{ for a brace"
        )
    try:
        names = [text.format(**each) for each in values]
    except ValueError as error:
        raise ParameterError(f"{flag} '{text}' has a wrong format: {error}", "write it as in {seed:04}") from None
    files = [Path(name) for name in names]
    if not all(file.name for file in files):
        raise ParameterError(f"{flag} '{text}' is a folder", "name a file")
    if len(set(files)) == len(files):
        return files
    return [file.with_stem(f"{file.stem}-{index}") for index, file in enumerate(files)]


def slug(text: str) -> str:
    """The first words of a text as part of a file name: lower case, joined by "-", at most 40 characters."""
    found = ""
    for word in re.findall(r"\w+", text.lower()):
        longer = f"{found}-{word}" if found else word[:_SLUG_LENGTH]
        if len(longer) > _SLUG_LENGTH:
            break
        found = longer
    return found or "image"


def _fields(flag: str, template: Path) -> set[str]:
    text, fields = template.as_posix(), set()
    try:
        for _, name, form, conversion in string.Formatter().parse(text):
            if name is None:
                continue
            if conversion or not _FORMAT.fullmatch(form or ""):
                raise ValueError(f"{name}:{form}")
            fields.add(name)
    except ValueError as error:
        raise ParameterError(
            f"{flag} '{text}' has a brace that is no placeholder: {error}",
            "write {{ and }} for braces, or as in {seed:04}",
        ) from None
    return fields
