"""Names of result files from templates."""

from pathlib import Path
from typing import Any

import pytest

from ebca.errors import ParameterError
from ebca.runtime.cli import names


def expanded(template: str, *values: dict[str, Any]) -> list[str]:
    return [str(file) for file in names.expand("--output", Path(template), values or ({"seed": 7},))]


def test_placeholders_are_filled_in() -> None:
    assert expanded("out/{seed:04}.png") == ["out/0007.png"]
    assert expanded("{{{seed}}}.png") == ["{7}.png"]
    assert expanded(str(names.DEFAULT), {"number": 3, "slug": "a-cat", "seed": -1}) == ["0003-a-cat--1.png"]


def test_names_that_would_be_equal_are_numbered() -> None:
    assert expanded("x.png", {"seed": 1}) == ["x.png"]
    assert expanded("x.png", {"seed": 1}, {"seed": 2}) == ["x-0.png", "x-1.png"]
    assert expanded("{seed}.png", {"seed": 1}, {"seed": 2}) == ["1.png", "2.png"]
    assert expanded("{seed}.png", {"seed": 1}, {"seed": 2}, {"seed": 1}) == ["1-0.png", "2-1.png", "1-2.png"]


@pytest.mark.parametrize(
    "template",
    ["{}.png", "{x}.png", "{seed.real}.png", "{seed[0]}.png", "{seed!r}.png", "{seed:9999999999}.png", "}.png"],
)
def test_other_braces_are_refused(template: str) -> None:
    with pytest.raises(ParameterError, match=r"\{\{"):
        expanded(template)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A lion, with a Crown!", "a-lion-with-a-crown"),
        ("../../etc/passwd", "etc-passwd"),
        ("ein Löwe 🦁 \udce9", "ein-löwe"),
        ("🦁", "image"),
        ("", "image"),
        ("one two three four five six seven eight nine", "one-two-three-four-five-six-seven-eight"),
        ("x" * 100, "x" * 40),
    ],
)
def test_a_slug_is_part_of_a_file_name(text: str, expected: str) -> None:
    assert names.slug(text) == expected
