"""Changes of a manifest.json, from one digit to another type: the same for the same seed.

    for mutation in mutations(contents, random.Random(0), 300):
        check(mutation.contents)

A mutation is `stamped` if its digest is that of the changed contents, as if the export had made them.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Place = tuple[str | int, ...]
"""The keys that lead to a value of a document."""

_DIGEST = re.compile(rb'"digest": *"([0-9a-f]{64})"')

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 10**9, 10**12, 2**63, 2**64, 10**30, 0.5, -0.0, 1e-300, 1e308),
    *("", "x", "abc", "two\nlines", "\0", "x" * 5000, "../x", "/etc/passwd", "batch", "0*batch", "height_99", "é"),
    *([], {}, [[]], [None], [1], {"a": 1}, {"": {}}, {"a": None}),
)
"""Values of other types and ranges."""

# Texts that no JSON writer makes: they take the place of a value.
_RAW = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-" + "9" * 400, "[" * 2000 + "]" * 2000, "01", "'x'", "",
        '{"a": 1, "a": 2}', '"\\ud800"', '"\t"', "1.", "1E5", "2.0")  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """A changed manifest.

    text: what was changed, for messages.
    """

    text: str
    contents: bytes
    stamped: bool


def mutations(contents: bytes, rng: random.Random, count: int) -> Iterator[Mutation]:
    """`count` changes of a manifest's contents. Every other one is stamped again."""
    source = _Source(contents)
    for index in range(count):
        text, changed = rng.choice(_WAYS)(source, rng)
        stamped = index % 2 == 0
        yield Mutation(text, restamped(changed) if stamped else changed, stamped)


def restamped(contents: bytes) -> bytes:
    """Contents with the digest that they should have; unchanged if they name none."""
    found = _DIGEST.search(contents)
    if found is None:
        return contents
    begin, end = found.span(1)
    blank = contents[:begin] + b"0" * 64 + contents[end:]
    return contents[:begin] + hashlib.sha256(blank).hexdigest().encode() + contents[end:]


class _Source:
    """A document, and its places by what is there.

    A place is picked by its first key, then by its second, so that every section is equally likely, however large.
    """

    def __init__(self, contents: bytes) -> None:
        self.contents = contents
        self.document = json.loads(contents)
        self.digits = [found.start() for found in re.finditer(rb"[0-9]", contents)]
        everywhere = [place for place in _places(self.document) if place != ("digest",)]

        def where(wanted: Callable[[Place, Any], bool]) -> _Grouped:
            found: _Grouped = {}
            for place in everywhere:
                if wanted(place, _value(self.document, place)):
                    found.setdefault(place[0], {}).setdefault(place[1:2], []).append(place)
            return found

        self.all = where(lambda place, value: True)
        self.numbers = where(lambda place, value: type(value) in (int, float))
        self.texts = where(lambda place, value: isinstance(value, str))
        self.lists = where(lambda place, value: isinstance(value, list) and bool(value))
        self.named = where(lambda place, value: isinstance(place[-1], str))

    def copy(self) -> Any:
        return json.loads(self.contents)

    def value(self, place: Place) -> Any:
        return _value(self.document, place)


_Grouped = dict[str | int, dict[Place, list[Place]]]
_Way = Callable[[_Source, random.Random], tuple[str, bytes]]


def _places(node: Any, way: Place = ()) -> Iterator[Place]:
    if way:
        yield way
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield from _places(node[key], (*way, key))


def _pick(places: _Grouped, rng: random.Random) -> Place:
    seconds = places[rng.choice(list(places))]
    return rng.choice(seconds[rng.choice(list(seconds))])


def _strange(source: _Source, rng: random.Random) -> tuple[str, bytes]:
    return _replaced(source, _pick(source.all, rng), rng.choice(STRANGE))


def _other_value(source: _Source, rng: random.Random) -> tuple[str, bytes]:
    """A value from elsewhere in the document: of the right type, often."""
    return _replaced(source, _pick(source.all, rng), source.value(_pick(source.all, rng)))


def _other_number(source: _Source, rng: random.Random) -> tuple[str, bytes]:
    place = _pick(source.numbers, rng)
    old = source.value(place)
    return _replaced(source, place, rng.choice([old + 1, old - 1, old * 2, old // 2, -old, old * 10**6, float(old)]))


def _other_text(source: _Source, rng: random.Random) -> tuple[str, bytes]:
    return _replaced(source, _pick(source.texts, rng), source.value(_pick(source.texts, rng)))


def _removed(source: _Source, rng: random.Random) -> tuple[str, bytes]:
    place, changed = _pick(source.all, rng), source.copy()
    del _value(changed, place[:-1])[place[-1]]
    return f"without {place}", _dumped(changed)


def _renamed(source: _Source, rng: random.Random) -> tuple[str, bytes]:
    place, changed = _pick(source.named, rng), source.copy()
    holder = _value(changed, place[:-1])
    name = rng.choice(["x", "", "../x", "\n", str(place[-1]).upper(), rng.choice(list(holder))])
    holder[name] = holder.pop(place[-1])
    return f"{place} as {name!r}", _dumped(changed)


def _moved(source: _Source, rng: random.Random) -> tuple[str, bytes]:
    """A list in another order, or with an element twice."""
    place = _pick(source.lists, rng)
    items = list(source.value(place))
    if rng.random() < 0.5:
        rng.shuffle(items)
    else:
        items.insert(rng.randrange(len(items) + 1), rng.choice(items))
    return _replaced(source, place, items)


def _raw(source: _Source, rng: random.Random) -> tuple[str, bytes]:
    place, raw = _pick(source.all, rng), rng.choice(_RAW)
    _, changed = _replaced(source, place, "here")
    return f"{place} is {raw[:20]}", changed.replace(b'"here"', raw.encode(), 1)


def _twice(source: _Source, rng: random.Random) -> tuple[str, bytes]:
    place, changed = _pick(source.named, rng), source.copy()
    holder = _value(changed, place[:-1])
    holder["here"] = rng.choice([holder[place[-1]], rng.choice(STRANGE)])
    return f"{place} twice", _dumped(changed).replace(b'"here"', json.dumps(place[-1]).encode(), 1)


def _flipped(source: _Source, rng: random.Random) -> tuple[str, bytes]:
    place, changed = rng.randrange(len(source.contents)), bytearray(source.contents)
    changed[place] ^= 1 << rng.randrange(8)
    return f"byte {place}", bytes(changed)


def _digit(source: _Source, rng: random.Random) -> tuple[str, bytes]:
    place, changed = rng.choice(source.digits), bytearray(source.contents)
    changed[place] = rng.choice([digit for digit in b"0123456789" if digit != changed[place]])
    return f"digit {place}", bytes(changed)


def _cut(source: _Source, rng: random.Random) -> tuple[str, bytes]:
    begin = rng.randrange(len(source.contents))
    end = len(source.contents) if rng.random() < 0.5 else begin + rng.randrange(1, 40)
    return f"without bytes {begin} to {end}", source.contents[:begin] + source.contents[end:]


_WAYS: tuple[_Way, ...] = (
    *(_strange, _strange, _strange, _other_value, _other_number, _other_number, _other_text, _other_text),
    *(_removed, _renamed, _moved, _raw, _twice, _flipped, _digit, _digit, _cut),
)


def _value(document: Any, place: Place) -> Any:
    for key in place:
        document = document[key]
    return document


def _replaced(source: _Source, place: Place, value: Any) -> tuple[str, bytes]:
    changed = source.copy()
    _value(changed, place[:-1])[place[-1]] = value
    return f"{place} is {str(value)[:60]!r}", _dumped(changed)


def _dumped(document: Any) -> bytes:
    return json.dumps(document, indent=1).encode()
