"""Images of coloured shapes with captions, drawn on the fly.

A scene is drawn with antialiased edges, slightly varied colours, and without overlaps. All randomness comes from the
generator that is passed in, so a seed gives the same images.
"""

from dataclasses import dataclass

import numpy as np

from ebca.bench.alignment.scenes import (
    BACKGROUNDS,
    COLORS,
    RELATIONS,
    SHAPES,
    SIZE,
    UNSEEN,
    Scene,
    Thing,
    paint,
)

# In half pixels: radii of 9.5 to 13.5 pixels, and slightly less if three things must fit.
_RADII = (19, 27)
_RADII_OF_THREE = (18, 22)
_GAP = 2.0
_SHADE = 8
# Distance in pixels of two centres in a relation: at least this along its axis, and at most this across it.
_ALONG, _ACROSS = 20, 10


@dataclass(frozen=True)
class Placed:
    """A thing in an image: centre and radius in pixels."""

    thing: Thing
    x: int
    y: int
    radius: float


def random_scene(rng: np.random.Generator, count: int, *, related: bool = False, unseen: bool = False) -> Scene:
    """A scene of `count` things of different colours and shapes.

    Args:
        related: put two things in a relation.
        unseen: allow the pairs of colour and shape that training leaves out.
    """
    while True:
        colors = rng.permutation(list(COLORS))[:count]
        shapes = rng.permutation(SHAPES)[:count]
        things = tuple(Thing(str(c), str(s)) for c, s in zip(colors, shapes, strict=True))
        if unseen or UNSEEN.isdisjoint(things):
            relation = str(rng.choice(list(RELATIONS))) if related else None
            return Scene(things, relation)


def place(rng: np.random.Generator, scene: Scene) -> list[Placed]:
    """Choose positions without overlaps that satisfy the relation."""
    low, high = _RADII_OF_THREE if len(scene.things) > 2 else _RADII
    while True:
        radii = rng.integers(low, high + 1, len(scene.things)) / 2
        at = [rng.integers(int(r) + 1, SIZE - int(r) - 1, 2) for r in radii]
        pairs = [(i, j) for j in range(len(at)) for i in range(j)]
        if any(np.hypot(*(at[i] - at[j])) < radii[i] + radii[j] + _GAP for i, j in pairs):
            continue
        if scene.relation:
            direction = np.array(RELATIONS[scene.relation])
            offset = at[0] - at[1]
            if offset @ direction < _ALONG or abs(offset @ direction[::-1]) > _ACROSS:
                continue
        return [
            Placed(thing, int(x), int(y), float(r)) for thing, (x, y), r in zip(scene.things, at, radii, strict=True)
        ]


def draw(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, list[Placed]]:
    """An image [SIZE,SIZE,3] uint8 of the scene, and where its things are."""
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = background
    placed = place(rng, scene)
    for item in placed:
        paint(image, item.thing, item.x, item.y, item.radius, _shaded(rng, COLORS[item.thing.color]))
    return np.rint(image).astype(np.uint8), placed


def _shaded(rng: np.random.Generator, color: tuple[int, int, int]) -> np.ndarray:
    return np.clip(np.array(color, np.float32) + rng.integers(-_SHADE, _SHADE + 1, 3), 0, 255)
