"""The fixed prompts of the benchmark, by kind, split into a development and a held-out half.

The text of a prompt decides which half it is in, so the split can neither leak nor drift. Settings are chosen on the
development half only.
"""

import hashlib
from functools import cache
from itertools import permutations

from ebca.bench.alignment.scenes import COLORS, RELATIONS, SHAPES, UNSEEN, Scene, Thing

KINDS = ("one", "two", "three", "relation", "unseen")
"""One, two or three things; two things in a relation; two things, one with a pair of colour and shape that did not
occur in training."""

SPLITS = ("development", "held-out")


@cache
def prompts(kind: str, split: str) -> tuple[Scene, ...]:
    """All prompts of a kind and a split, in a fixed pseudorandom order."""
    ranked = sorted((_digest(scene), scene) for scene in _all(kind))
    return tuple(scene for digest, scene in ranked if SPLITS[digest[0] & 1] == split)


def _all(kind: str) -> list[Scene]:
    count = {"one": 1, "three": 3}.get(kind, 2)
    wanted_unseen = 1 if kind == "unseen" else 0
    scenes = []
    for colors in permutations(COLORS, count):
        for shapes in permutations(SHAPES, count):
            things = tuple(Thing(color, shape) for color, shape in zip(colors, shapes, strict=True))
            if len(UNSEEN.intersection(things)) == wanted_unseen:
                scenes += [Scene(things, r) for r in (RELATIONS if kind == "relation" else (None,))]
    return scenes


def _digest(scene: Scene) -> bytes:
    return hashlib.sha256(scene.caption().encode()).digest()
