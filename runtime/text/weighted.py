r"""The weights that people write into prompts, and `BREAK`: the syntax of the common web UI, read without a tokenizer.

    (word)        1.1 times            (word:1.3)    1.3 times
    [word]        1 / 1.1 times        ((word))      factors of nested brackets are multiplied
    \( \) \[ \]   brackets as text     BREAK         what follows begins a new chunk, see `ebca.runtime.text.chunks`

Only brackets and the word BREAK, in capitals, are syntax. Backslashes before them escape: of 2n, n remain, and of
2n + 1, n remain and the bracket or BREAK is text. Other backslashes are text, so a prompt without brackets and BREAK is
read as it is.

Where this differs from the web UI, on purpose:

- Brackets that are not closed, or not opened, are an error. The web UI closes or ignores them.
- After a digit, only a number with a fraction is a weight, so that (16:9) and (at 5:30) are text in brackets.
- [from:to:0.5] and [one|other], which change the prompt while the image is made, are an error: they would be read as
  text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ebca.errors import EbcaError
from ebca.runtime.schema import parameters as rules

_FACTORS = {"(": 1.1, "[": 1 / 1.1}
_OPENING = {")": "(", "]": "["}
# BREAK is a part of a longer word where one of these is beside it.
_OF_WORDS = r"[A-Za-z0-9_\u0080-\U0010FFFF]"
# The look-behind keeps a long run of backslashes from being tried at each of them.
_SYNTAX = re.compile(rf"(?<!\\)(\\*+)([()\[\]]|(?<!{_OF_WORDS})BREAK(?!{_OF_WORDS}))")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)")
_SPACE = " \t\r\n"
# How much of a prompt a message shows, in characters.
_SHOWN = 40


@dataclass(frozen=True)
class Segment:
    """Characters `start` to `end` of the plain text, the latter excluded, which have one weight.

    Attributes:
        start, end: of the characters.
        weight: factor of the embeddings of their tokens.
        part: how many BREAKs stand before it.
    """

    start: int
    end: int
    weight: float
    part: int


@dataclass(frozen=True)
class Weighted:
    """A prompt that has been read.

    Attributes:
        plain: the text without its syntax; a line end in place of each BREAK.
        segments: in order; together they are all of `plain` but those line ends. Neighbours differ in weight or part.
        parts: one more than there are BREAKs.
    """

    plain: str
    segments: tuple[Segment, ...]
    parts: int = 1


@dataclass
class _Bracket:
    """One that was opened."""

    sign: str
    at: int  # its character in the prompt
    factor: float


@dataclass(frozen=True)
class _Mark:
    """A bracket that closes, or BREAK."""

    sign: str


_Item = str | _Bracket | _Mark


def unweighted(prompt: str) -> Weighted:
    """A prompt in which nothing is syntax."""
    return Weighted(prompt, (Segment(0, len(prompt), 1.0, 0),) if prompt else ())


def escaped(text: str) -> str:
    """A prompt that is read as this text, without weights."""
    return _SYNTAX.sub(lambda found: rf"{found[1] * 2}\{found[2]}", text)


def parse(prompt: str) -> Weighted:
    """Read a prompt, in time linear in its length.

    Raises:
        ParameterError: brackets without a partner, a weight out of range, or syntax of the web UI that is not
            supported.
    """
    items: list[_Item] = []
    opened: list[_Bracket] = []
    at = 0
    for found in _SYNTAX.finditer(prompt):
        slashes, sign, place = len(found[1]), found[2], found.start(2)
        text = prompt[at : found.start()] + "\\" * (slashes // 2)
        at = found.end()
        if slashes % 2:
            items.append(text + sign)
        elif sign in _FACTORS:
            opened.append(_Bracket(sign, place, _FACTORS[sign]))
            items += [text, opened[-1]]
        elif sign in _OPENING:
            if not opened or opened[-1].sign != _OPENING[sign]:
                raise _unbalanced(prompt, sign, place)
            bracket = opened.pop()
            number = _weight_at_end(text, alone=items[-1] is bracket)
            if sign == "]" and (number or "|" in text):
                raise rules.PROMPT_EDITING.error(found=_cut(prompt[bracket.at : at]))
            if number:
                bracket.factor = float(number)
                text = text[: text.rindex(":")]
            items += [text, _Mark(sign)]
        else:
            items += [text, _Mark(sign)]
    if opened:
        raise _unbalanced(prompt, opened[-1].sign, opened[-1].at)
    items.append(prompt[at:])
    return _joined(items)


def _weight_at_end(text: str, *, alone: bool) -> str:
    """The number at the end of what closes a bracket, such as " word:1.3"; "" if there is none.

    Args:
        text: between the last place of syntax and the bracket that closes.
        alone: the text is all that the brackets hold.
    """
    before, colon, after = text.rpartition(":")
    words, number = before.rstrip(_SPACE), after.strip(_SPACE)
    if not colon or not _NUMBER.fullmatch(number) or (alone and not words):
        return ""
    return number if "." in number or words[-1:] not in tuple("0123456789") else ""


def _joined(items: Sequence[_Item]) -> Weighted:
    """The plain text with the weight of each character."""
    pieces: list[str] = []
    segments: list[Segment] = []
    weights = [1.0]
    end = part = 0
    for item in items:
        if isinstance(item, _Bracket):
            weights.append(weights[-1] * item.factor)
        elif isinstance(item, _Mark) and item.sign in _OPENING:
            weights.pop()
        elif isinstance(item, _Mark):
            pieces.append("\n")
            end, part = end + 1, part + 1
        elif item:
            weight, start = weights[-1], end
            if not abs(weight) <= rules.MAX_PROMPT_WEIGHT:
                limit = rules.MAX_PROMPT_WEIGHT
                raise rules.PROMPT_WEIGHT.error(words=_cut(item), value=weight, limit=limit)
            pieces.append(item)
            end += len(item)
            if segments and (segments[-1].weight, segments[-1].part) == (weight, part):
                start = segments.pop().start
            segments.append(Segment(start, end, weight, part))
    return Weighted("".join(pieces), tuple(segments), part + 1)


def _unbalanced(prompt: str, sign: str, place: int) -> EbcaError:
    problem = rules.PROMPT_BRACKET_OPEN if sign in _FACTORS else rules.PROMPT_BRACKET_CLOSED
    before, after = prompt[max(place - _SHOWN // 2, 0) : place], prompt[place : place + _SHOWN // 2]
    return problem.error(sign=sign, position=place + 1, near=_one_line(before + after))


def _cut(text: str) -> str:
    return _one_line(rules.shortened(text, _SHOWN))


def _one_line(text: str) -> str:
    return " ".join(text.split())
