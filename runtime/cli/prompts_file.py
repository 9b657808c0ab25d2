"""Files with one prompt per line: plain text, or a JSON object with parameters of its own."""

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebca import console
from ebca.errors import ParameterError
from ebca.runtime.request.fields import FIELD_PARTS
from ebca.runtime.request.inputs import ARRAYS
from ebca.runtime.request.serialization import from_json

STANDARD_INPUT = Path("-")

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """A prompt of the file.

    Attributes:
        number: of the line in the file, from 1.
        fields: what it says, as in JSON.
    """

    number: int
    fields: Mapping[str, Any]

    def options(self, args: argparse.Namespace, number: int) -> argparse.Namespace:
        """The options of the command line, with those of this line in their place.

        Args:
            args: of the command line.
            number: of the prompt, from 1. It is the seed if there is no other.

        Raises:
            ParameterError: a field that does not exist, or a value of a wrong type.
        """
        values = {**vars(args), "seed": [number] if args.seed is None else args.seed}
        for name, value in self.fields.items():
            if name in _OPTIONS:
                values[name] = _OPTIONS[name](name, value)
            elif name not in _REQUEST:
                near = difflib.get_close_matches(name, FIELDS, 1)
                meant = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(FIELDS)}"
                raise ParameterError(f"there is no field '{name}'", meant)
        if values["prompt"] is None and values["source_prompt"] is None:
            raise ParameterError("it has no prompt", 'give {"prompt": "..."}')
        return argparse.Namespace(**values)

    def request_fields(self) -> dict[str, Any]:
        """Fields of the request that no option has in this form. Raises ParameterError for a value of a wrong type."""
        given = {name: value for name, value in self.fields.items() if name in _REQUEST}
        _check_regions(given.get("regions"))
        _check_controls(given.get("control"))
        read = from_json(given).values()
        return {name: read[name] for name in given}


def _check_regions(regions: Any) -> None:
    """As with other images, what a result records could not tell two masks apart that are no files."""
    for phrase, region in (regions if isinstance(regions, dict) else {}).items():
        box = isinstance(region, list) and len(region) == 4 and not any(isinstance(one, list) for one in region)
        if not box and not isinstance(region, str):
            raise ParameterError(
                f"the region of '{phrase}' is {region!r}"[:200], "give the file of a mask, or a box [0, 0, 0.5, 1]"
            )


def _check_controls(controls: Any) -> None:
    """Likewise."""
    for one in controls if isinstance(controls, list) else ():
        image = one.get("image") if isinstance(one, dict) else ""
        if not all(isinstance(file, str) for file in (image if isinstance(image, list) else [image])):
            raise ParameterError(f"the image of a control is {image!r}"[:200], "give its file")


def read(file: Path) -> list[Line]:
    """The prompts of a file in UTF-8, or of standard input. Empty lines and lines that begin with "#" are skipped.

    Raises:
        ParameterError: a file that cannot be read, is not UTF-8 text, has no prompt, or has a line that begins with "{"
            and is not a JSON object.
    """
    raw = _contents(file).removeprefix(_BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = []
    for number, encoded in enumerate(raw.split(b"\n"), 1):
        try:
            text = encoded.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise _wrong(file, number, "it is not UTF-8 text", "save the file as UTF-8") from None
        if text.startswith("{"):
            try:
                fields = json.loads(text, object_pairs_hook=_distinct)
            except (ValueError, RecursionError) as error:
                remedy = 'write {"prompt": "..."}, also for a prompt that begins with a brace'
                raise _wrong(file, number, f"it is not JSON: {error}", remedy) from None
            lines.append(Line(number, {name: value for name, value in fields.items() if value is not None}))
        elif text and not text.startswith("#"):
            lines.append(Line(number, {"prompt": text}))
    if not lines:
        raise ParameterError(f"{shown(file)} has no prompt", "write one per line")
    return lines


def shown(file: Path) -> str:
    """The file's name for messages."""
    return "standard input" if file == STANDARD_INPUT else f"'{file}'"


def _contents(file: Path) -> bytes:
    if file != STANDARD_INPUT:
        try:
            return file.read_bytes()
        except OSError as error:
            raise ParameterError(
                f"--prompts-file '{file}' cannot be read: {error.strerror}", "check the path"
            ) from None
    try:
        return b"" if sys.stdin is None else sys.stdin.buffer.read()
    except OSError as error:
        raise ParameterError(f"standard input cannot be read: {error.strerror}", "name a file") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has '{name}' twice")
        found[name] = value
    return found


def _wrong(file: Path, number: int, problem: str, remedy: str) -> ParameterError:
    return ParameterError(f"line {number} of {shown(file)}: {problem}", remedy)


def _text(name: str, value: Any) -> str:
    return str(_checked(name, value, str, "a text"))


def _whole(name: str, value: Any) -> int:
    return int(_checked(name, value, int, "a whole number"))


def _number(name: str, value: Any) -> float:
    return float(_checked(name, value, int | float, "a number"))


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ParameterError(f"{name} is {value!r}"[:200], "give true or false")
    return value


def _seeds(name: str, value: Any) -> list[int]:
    return [_whole(name, one) for one in (value if isinstance(value, list) and value else [value])]


def _path(name: str, value: Any) -> Path:
    text = _text(name, value)
    try:
        if "\0" in text:
            raise argparse.ArgumentTypeError(f"{name} has a zero byte")
        return console.path(text)
    except argparse.ArgumentTypeError as error:
        raise ParameterError(str(error), "check the path") from None


def _paths(name: str, value: Any) -> list[Path]:
    return [_path(name, one) for one in (value if isinstance(value, list) and value else [value])]


def _checked(name: str, value: Any, kind: Any, expected: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ParameterError(f"{name} is {value!r}"[:200], f"give {expected}")
    return value


# Fields that have an option, which other options and the names of files depend on.
_OPTIONS: Mapping[str, Callable[[str, Any], Any]] = {
    "prompt": _text,
    "negative_prompt": _text,
    "output": _path,
    "seed": _seeds,
    "num_images": _whole,
    "steps": _whole,
    "guidance_scale": _number,
    "scheduler": _text,
    "height": _whole,
    "width": _whole,
    "image": _paths,
    "mask": _paths,
    "strength": _number,
    "image_guidance_scale": _number,
    "source_prompt": _text,
    "regularize": _switch,
}

# What a PNG file holds could not tell two of these apart, or the files are named on the command line.
_UNFIT = {*ARRAYS, "energies", "attention_maps"}
_REQUEST = tuple(name for name in FIELD_PARTS if name not in _OPTIONS and name not in _UNFIT)

FIELDS = (*_OPTIONS, *_REQUEST)
"""Every field that a line can have."""
