"""The syntax of weights in prompts."""

import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ebca
from ebca.errors import ParameterError
from ebca.runtime.schema import parameters as rules
from ebca.runtime.text.chunks import Reading, chunked
from ebca.runtime.text.weighted import Segment, escaped, parse, unweighted

syntax = st.lists(
    st.one_of(st.sampled_from(["(", ")", "[", "]", "\\", ":", "1.3", "BREAK", " ", "\n", "|", "é", "a"]), st.text()),
    max_size=30,
).map("".join)


def weights(prompt: str) -> list[tuple[str, float]]:
    read = parse(prompt)
    return [(read.plain[one.start : one.end], pytest.approx(one.weight)) for one in read.segments]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a red cat", [("a red cat", 1)]),
        ("", []),
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("(red) [cat]", [("red", 1.1), (" ", 1), ("cat", 1 / 1.1)]),
        ("((red:1.2) circle:1.5)", [("red", 1.8), (" circle", 1.5)]),
        ("[(a)]", [("a", 1)]),
        ("a ( red circle : -.5 )", [("a ", 1), (" red circle ", -0.5)]),
        ("(a:b:1.3)", [("a:b", 1.3)]),
        ("((a):3)", [("a", 3.3)]),
        ("(room 2:1.3)", [("room 2", 1.3)]),
        ("(red:+2)", [("red", 2)]),
        ("a screen (16:9)", [("a screen ", 1), ("16:9", 1.1)]),
        ("(at 5:30)", [("at 5:30", 1.1)]),
        ("(:3)", [(":3", 1.1)]),
        ("(red:)", [("red:", 1.1)]),
        ("()", []),
        (r"a \(red\) \[cat\]", [("a (red) [cat]", 1)]),
        (r"\\(a:2)", [("\\", 1), ("a", 2)]),
        (r"C:\cats\ and \\", [(r"C:\cats\ and \\", 1)]),
        (r"not a \BREAK", [("not a BREAK", 1)]),
        ("BREAKFAST and ÉBREAK and _BREAK", [("BREAKFAST and ÉBREAK and _BREAK", 1)]),
    ],
)
def test_weights_are_read(prompt: str, found: list[tuple[str, float]]) -> None:
    assert weights(prompt) == found


def test_break_begins_a_part_inside_brackets_too() -> None:
    read = parse("(a BREAK b:2) BREAK")
    assert read.plain == "a \n b \n"
    assert [(one.weight, one.part) for one in read.segments] == [(2.0, 0), (2.0, 1), (1.0, 1)]
    assert read.parts == 3


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a (red cat", "'(' at character 3 of a prompt is not closed: 'a (red cat'; close it, write \\( for text"),
        ("a red) cat", "')' at character 6 of a prompt closes nothing"),
        ("a (red] cat", "']' at character 7 of a prompt closes nothing: 'a (red] cat'; remove it"),
        ("é é [\n\nred", "'[' at character 5 of a prompt is not closed: 'é é [ red'"),
        ("a [red:1.3]", "'[red:1.3]' in a prompt would change it while the image is made, which is not supported"),
        ("a [cat:dog:0.5]", "'[cat:dog:0.5]' in a prompt would"),
        ("a [cat|dog]", "'[cat|dog]' in a prompt would"),
        ("(red:11)", "'red' in a prompt has the weight 11; give -10 to 10, write \\( for text"),
        ("(red:" + "9" * 400 + ")", "has the weight inf"),
        ("(" * 30 + "red" + ")" * 30, "has the weight 17.4"),
    ],
)
def test_wrong_syntax_is_one_line_with_its_place(prompt: str, told: str) -> None:
    with pytest.raises(ParameterError) as refused:
        parse(prompt)
    text = str(refused.value)
    assert told in text and "prompt_weighting=False (ebca-run: --no-prompt-weighting)" in text
    assert "\n" not in text and len(text) < 400


@settings(max_examples=300, deadline=None)
@given(syntax)
def test_any_text_is_read_or_refused(prompt: str) -> None:
    """Also: segments are all of the plain text but the line ends of BREAK."""
    try:
        read = parse(prompt)
    except ParameterError:
        return
    assert len(read.plain) == sum(one.end - one.start for one in read.segments) + read.parts - 1
    for one, other in zip(read.segments, read.segments[1:], strict=False):
        assert (one.weight, one.part) != (other.weight, other.part)
        assert other.start - one.end == other.part - one.part


@settings(max_examples=300, deadline=None)
@given(syntax)
def test_an_escaped_text_is_itself(text: str) -> None:
    assert parse(escaped(text)) == unweighted(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.1, 2), max_size=3), st.text("abc ").filter(str.strip))
def test_weights_multiply(factors: list[float], text: str) -> None:
    prompt, product = text, 1.0
    for factor in factors:
        prompt = f"({prompt}:{factor:.6f})"
        product *= round(factor, 6)
    assert parse(prompt).segments == (Segment(0, len(text), pytest.approx(product), 0),)


@settings(max_examples=100, deadline=None)
@given(st.text("ab:.1 \\|\n"))
def test_text_without_brackets_is_not_changed(text: str) -> None:
    assert parse(text) == unweighted(text)


@pytest.mark.parametrize("unit", ["(a", "(" * 3 + "\\", "\\", "(a:1)", "a BREAK ", "(:", ":"])
def test_time_is_linear(unit: str) -> None:
    """A prompt of a megabyte takes less than a second on any machine; 100 times longer than a long one."""
    began = time.perf_counter()
    with suppress(ParameterError):
        parse(unit * (300_000 // len(unit)))
    assert time.perf_counter() - began < 5


COMMA = 9


@pytest.mark.parametrize(
    ("ids", "sizes"),
    [
        ([], [0]),
        ([1] * 75, [75]),
        ([1] * 76, [75, 1]),
        ([1] * 160, [75, 75, 10]),
        # Behind the last comma among the last 20.
        ([*[1] * 60, COMMA, *[1] * 60], [61, 60]),
        ([*[1] * 54, COMMA, *[1] * 60], [75, 40]),
        ([*[1] * 55, COMMA, *[1] * 60], [56, 60]),
        ([*[1] * 74, COMMA, 1], [75, 1]),
        # A comma is never the reason to end before itself.
        ([*[1] * 60, COMMA, *[1] * 14, COMMA, 1], [75, 2]),
    ],
)
def test_chunks_end_behind_a_comma(ids: list[int], sizes: list[int]) -> None:
    found = chunked(ids, [0] * len(ids), 1, COMMA, 75)
    assert [len(one) for one in found] == sizes
    assert [index for one in found for index in one] == list(range(len(ids)))


def test_breaks_end_chunks() -> None:
    assert [len(one) for one in chunked([1, 1, 1], [0, 2, 2], 3, None, 75)] == [1, 0, 2]
    assert [len(one) for one in chunked([1], [0], 2, None, 75)] == [1]
    assert [len(one) for one in chunked([], [], 3, None, 75)] == [0, 0]


def test_a_prompt_of_too_many_chunks_is_refused() -> None:
    with ebca.load("shapes") as engine:
        reading = engine.tokenizer.reading(Reading(weighting=True, long=True))
    most = rules.MAX_PROMPT_CHUNKS
    assert reading.rows("a BREAK " * (most - 1) + "a") == most
    with pytest.raises(ParameterError, match=f"a prompt has {most + 1} chunks of up to"):
        reading.rows("a BREAK " * most + "a")
