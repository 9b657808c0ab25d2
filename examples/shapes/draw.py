"""Images of coloured shapes with captions, drawn on the fly.

A scene is drawn with antialiased edges, slightly varied colours, and without overlaps. All randomness comes from the
generator that is passed in, so a seed gives the same images.
"""

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

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


def mixed_scene(rng: np.random.Generator, share: np.ndarray, related: float = 0.5) -> Scene:
    """A scene of one, two or three things, with the shares [3] of each; `related`: share of relations among two."""
    count = int(rng.choice(3, p=share)) + 1
    return random_scene(rng, count, related=count == 2 and rng.random() < related)


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


Job = tuple[Sequence[int], int, np.ndarray, float]
"""A batch of images: the seed of its generator, how many, and the shares and relations of `mixed_scene`."""


class Drawing:
    """Draws batches in `workers` processes, or in this one if there are none. A context manager.

    The processes are forked at once, so that none inherits a GPU's state that this one gets later.
    """

    def __init__(self, workers: int = 0) -> None:
        self._pool = None
        if workers:
            self._pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))
            self._pool.submit(int).result()

    def batches(self, jobs: Iterable[Job]) -> Iterator[tuple[np.ndarray, list[Scene]]]:
        """Images [n,SIZE,SIZE,3] uint8 and scenes of each batch; the same with any number of processes."""
        return map(_batch, jobs) if self._pool is None else self._pool.map(_batch, jobs, chunksize=4)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _batch(job: Job) -> tuple[np.ndarray, list[Scene]]:
    seed, count, share, related = job
    rng = np.random.default_rng(seed)
    scenes = [mixed_scene(rng, share, related) for _ in range(count)]
    return np.stack([draw(rng, scene)[0] for scene in scenes]), scenes
