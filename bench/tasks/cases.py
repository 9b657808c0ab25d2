"""The cases: images of coloured shapes, and the changes that are asked for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ebca.bench.alignment.prompts import SPLITS, prompts
from ebca.bench.alignment.scenes import BACKGROUNDS, COLORS, SHAPES, SIZE, Scene, Thing, paint
from ebca.errors import ParameterError

EDIT_SHAPE, EDIT_COLOR, INPAINT, REAL_SHAPE, REAL_COLOR = KINDS = (
    "edit shape",
    "edit color",
    "inpaint",
    "real shape",
    "real color",
)
"""Kinds of cases, each beginning with its task. edit, real: one thing of a generated or drawn image gets another shape
or colour. inpaint: a hole in a drawn image, over a thing in half of the cases, is filled with a new thing."""

TASKS = ("edit", "inpaint", "real")

# As in training: 9.5 to 13.5 pixels, in half pixels. There is no room for larger things beside a hole.
_RADII = (19, 27)
_RADII_BESIDE_A_HOLE = (19, 23)
_GAP = 2.0
_TRIES = 1000


@dataclass(frozen=True)
class Wish:
    """What an image shows, and what it should show.

    source: one or two things. target: two things.
    changed: index of the new thing in the target, and of the thing it replaces in the source.
    """

    source: Scene
    target: Scene
    changed: int

    @property
    def new(self) -> Thing:
        return self.target.things[self.changed]

    @property
    def old(self) -> Thing | None:
        """The thing that must disappear, or None."""
        return self.source.things[self.changed] if len(self.source.things) > 1 else None

    @property
    def kept(self) -> Thing:
        return self.target.things[1 - self.changed]


@dataclass(frozen=True, eq=False)
class Case:
    """An image and a wish for it. before: [H,W,3] uint8. mask: [H,W] uint8, 255 in the hole, or None."""

    wish: Wish
    seed: int
    before: np.ndarray = field(repr=False)
    mask: np.ndarray | None = field(default=None, repr=False)


def task_of(kind: str) -> str:
    """The task of a kind: its first word."""
    return kind.split()[0]


def wishes(kind: str, split: str, seed: int) -> Iterator[tuple[Wish, int]]:
    """An endless sequence of wishes and their seeds: the prompts with two things in order, each with the next seed.

    The prompt before and after the change are both in the split.
    """
    if kind not in KINDS or split not in SPLITS:
        raise ParameterError(f"there are no cases '{kind}' of '{split}'", f"kinds: {', '.join(KINDS)}")
    available = prompts("two", split)
    among = frozenset(available)
    # Not the seeds themselves: the wish must not be correlated with the initial noise.
    rng = np.random.default_rng([seed, 1])
    number = 0
    while True:
        scene, changed = available[number % len(available)], int(rng.integers(2))
        if task_of(kind) == "inpaint":
            found = [_inpainting(scene, rng)]
        else:
            found = [Wish(scene, target, changed) for target in _changes(kind, scene, changed) if target in among]
        if found:
            yield found[int(rng.integers(len(found)))], seed + number
        number += 1


def _changes(kind: str, scene: Scene, changed: int) -> Iterator[Scene]:
    """The scene with another colour or shape of one thing."""
    thing = scene.things[changed]
    by_color, by_shape = (Thing(c, thing.shape) for c in COLORS), (Thing(thing.color, s) for s in SHAPES)
    for new in by_shape if kind.endswith("shape") else by_color:
        things = (new, scene.things[1]) if changed == 0 else (scene.things[0], new)
        if new != thing:
            yield Scene(things)


def _inpainting(scene: Scene, rng: np.random.Generator) -> Wish:
    """The first thing is there, and the second one is wanted: in an empty place, or instead of a third thing."""
    kept, new = scene.things
    color = rng.choice([c for c in COLORS if c not in (kept.color, new.color)])
    shape = rng.choice([s for s in SHAPES if s not in (kept.shape, new.shape)])
    third = (Thing(str(color), str(shape)),) if rng.integers(2) else ()
    return Wish(Scene((kept, *third)), scene, 1)


def draw(wish: Wish, seed: int, hole: int | None = None) -> Case:
    """Draw the source of a wish on one of the backgrounds of training.

    hole: side of the hole in pixels, for inpainting. The kept thing is outside, the other one in the middle of the
    hole.

    Raises:
        ParameterError: a hole that leaves no room beside it, or is too small for a thing.
    """
    rng = np.random.default_rng([seed, 2])
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    places = _pair(rng) if hole is None else _beside(rng, hole)
    for thing, (x, y, radius) in zip(wish.source.things, places, strict=False):
        paint(image, thing, x, y, radius, COLORS[thing.color])
    mask = None
    if hole is not None:
        (x, y, _), half = places[1], hole // 2
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[y - half : y + half, x - half : x + half] = 255
    return Case(wish, seed, np.rint(image).astype(np.uint8), mask)


_Place = tuple[int, int, float]


def _pair(rng: np.random.Generator) -> tuple[_Place, _Place]:
    """Centres and radii of two things that do not overlap."""

    def draw_two() -> tuple[_Place, _Place] | None:
        a, b = _anywhere(rng, _RADII), _anywhere(rng, _RADII)
        return (a, b) if np.hypot(a[0] - b[0], a[1] - b[1]) >= a[2] + b[2] + _GAP else None

    return _first(draw_two, "two things do not fit")


def _beside(rng: np.random.Generator, hole: int) -> tuple[_Place, _Place]:
    """A thing, and the centre of a hole that does not touch it, with the radius of a thing inside the hole."""
    if hole % 4 or not 2 * (_RADII_BESIDE_A_HOLE[1] // 2 + 2) <= hole <= SIZE - _RADII_BESIDE_A_HOLE[0]:
        raise ParameterError(f"a hole of {hole} pixels does not fit", "give 28, 32, 36, or 40")

    def draw_two() -> tuple[_Place, _Place] | None:
        x, y, radius = _anywhere(rng, _RADII_BESIDE_A_HOLE)
        # One latent of the model covers four pixels.
        left, top = (4 * int(v) for v in rng.integers(0, (SIZE - hole) // 4 + 1, 2))
        away = max(left - x, x - (left + hole), top - y, y - (top + hole))
        inside = (left + hole // 2, top + hole // 2, float(rng.integers(*_RADII_BESIDE_A_HOLE)) / 2)
        return ((x, y, radius), inside) if away >= radius + 1 else None

    return _first(draw_two, f"a hole of {hole} pixels leaves no room for a thing beside it")


def _anywhere(rng: np.random.Generator, radii: tuple[int, int]) -> _Place:
    radius = float(rng.integers(radii[0], radii[1] + 1)) / 2
    x, y = rng.integers(int(radius) + 1, SIZE - int(radius) - 1, 2)
    return int(x), int(y), radius


def _first(draw_two: Callable[[], tuple[_Place, _Place] | None], problem: str) -> tuple[_Place, _Place]:
    for _ in range(_TRIES):
        if (found := draw_two()) is not None:
            return found
    raise ParameterError(problem)
