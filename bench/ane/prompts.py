"""Prompts that name two things: the list of Attend-and-Excite from a file, or a list of the same structure."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

from ebca.errors import ParameterError

SUBSETS = ("animals", "animals_objects", "objects")
"""Two animals; an animal and a coloured object; two coloured objects."""

ANIMALS = ("cat", "dog", "bird", "bear", "lion", "horse", "elephant", "monkey", "frog", "turtle", "rabbit", "mouse")
OBJECTS = (
    "backpack",
    "glasses",
    "crown",
    "suitcase",
    "chair",
    "balloon",
    "bow",
    "car",
    "bowl",
    "bench",
    "clock",
    "apple",
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "gray", "black", "white")

# What an animal wears, rather than stands beside.
_WORN = ("crown", "bow", "glasses", "backpack")
_ARTICLES = ("a ", "an ", "the ")
_REMEDY = f"give a JSON object of lists of texts named {', '.join(SUBSETS)}"


@dataclass(frozen=True)
class Prompt:
    """A prompt in two halves, such as "a cat" and "a red bow" of "a cat with a red bow"."""

    subset: str
    text: str
    halves: tuple[str, str]

    @property
    def phrases(self) -> tuple[str, str]:
        """The halves without their articles: "cat", "red bow"."""
        first, second = map(_without_article, self.halves)
        return first, second


def parse(subset: str, text: str) -> Prompt:
    """Split a prompt at its first "and", or else at its first "with", as the benchmark does.

    Raises:
        ParameterError: it has neither, or does not name two different things.
    """
    for word in (" and ", " with "):
        first, found, second = text.partition(word)
        if found:
            prompt = Prompt(subset, text, (first.strip(), second.split(word)[0].strip()))
            if all(prompt.phrases) and len(set(prompt.phrases)) == 2:
                return prompt
            break
    raise ParameterError(
        f"the prompt '{text}' does not name two things", 'join two different things by "and" or by "with"'
    )


def own(seed: int = 0) -> dict[str, list[Prompt]]:
    """66 pairs of animals, 144 of an animal and an object, 66 of objects. The seed decides colours and the order."""
    made: Mapping[str, Iterator[str]] = {
        "animals": (f"{_a(one)} and {_a(other)}" for one, other in combinations(ANIMALS, 2)),
        "animals_objects": (
            f"{_a(animal)} {'with' if thing in _WORN else 'and'} {_a(f'{_colors(seed, animal, thing)[0]} {thing}')}"
            for animal, thing in product(ANIMALS, OBJECTS)
        ),
        "objects": (
            " and ".join(_a(f"{color} {thing}") for color, thing in zip(_colors(seed, *pair), pair, strict=True))
            for pair in combinations(OBJECTS, 2)
        ),
    }
    # In a random order, the first few prompts stand for all.
    rank: Callable[[str], bytes] = lambda text: _digest(seed, text)  # noqa: E731
    return {subset: [parse(subset, text) for text in sorted(texts, key=rank)] for subset, texts in made.items()}


def read(file: Path) -> dict[str, list[Prompt]]:
    """The prompts of a JSON file: an object of up to three lists, named as in SUBSETS.

    Raises:
        ParameterError: it cannot be read, or is not such a file.
    """
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterError(f"cannot read the prompts '{file}': {error}", _REMEDY) from None
    if not isinstance(found, dict) or not found or not set(found) <= set(SUBSETS):
        raise ParameterError(f"'{file}' does not hold prompts of this benchmark", _REMEDY)
    for subset, texts in found.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ParameterError(f"'{subset}' in '{file}' is no list of texts", _REMEDY)
    return {name: [parse(name, text) for text in dict.fromkeys(found[name])] for name in SUBSETS if name in found}


def chosen(
    prompts: Mapping[str, Sequence[Prompt]], subsets: Sequence[str] | None, limit: int | None
) -> dict[str, list[Prompt]]:
    """The first `limit` prompts of each subset; None: all.

    Raises:
        ParameterError: there is no such subset, or the limit is less than 1.
    """
    if limit is not None and limit < 1:
        raise ParameterError(f"--limit is {limit}", "give 1 or more")
    missing = [name for name in subsets or () if name not in prompts]
    if missing:
        raise ParameterError(f"the prompts have no subset '{missing[0]}'", f"choose from {', '.join(prompts)}")
    return {name: list(found[:limit]) for name, found in prompts.items() if subsets is None or name in subsets}


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _without_article(half: str) -> str:
    return next((half[len(article) :] for article in _ARTICLES if half.lower().startswith(article)), half)


def _colors(seed: int, first: str, second: str) -> tuple[str, str]:
    """Two different colours."""
    digest = int.from_bytes(_digest(seed, f"{first} {second}")[:8])
    rest, one = divmod(digest, len(COLORS))
    other = rest % (len(COLORS) - 1)
    return COLORS[one], COLORS[other + (other >= one)]


def _digest(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode()).digest()
