"""Detect coloured shapes in an image by classical image processing.

A pixel that differs from the background belongs to the nearest of the eight colours. A connected patch of one colour is
a thing, and the shape whose outline it overlaps most is its shape. Nothing is learned, so only an image that shows the
shapes scores.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from ebca.bench.alignment.scenes import COLORS, RELATIONS, SHAPES, Scene, Thing, coverage

# Smaller patches, in pixels, are specks. The smallest thing that is drawn covers about 80.
_MIN_AREA = 30
# A patch with a smaller overlap with its best shape has no shape.
_MIN_OVERLAP = 0.62
_GRID = 32
# Radii of the templates in pixels.
_RADII = (8, 10, 12)
# Least distance in pixels of two centres that are in a relation.
_APART = 4.0

FOREGROUND = 42.0
"""RGB distance from the background (of 255) that makes a pixel foreground."""


@dataclass(frozen=True)
class Found:
    """A patch: its colour and shape ("" if it resembles none), centre in pixels, area, and overlap with the shape."""

    color: str
    shape: str
    x: float
    y: float
    area: int
    overlap: float

    @property
    def thing(self) -> Thing:
        return Thing(self.color, self.shape)


PRESENT, MISCOLORED, MISSHAPEN, NEGLECTED = OUTCOMES = ("present", "miscolored", "misshapen", "neglected")
"""The outcome for a thing of the prompt: it is present; its shape has another colour; its colour is on another shape;
or neither its shape nor its colour is there."""


@dataclass(frozen=True)
class Reading:
    """What an image shows of a scene.

    outcomes: one of OUTCOMES for each thing of the scene.
    found: number of patches, including those without a shape.
    related: all things are present and the relation holds; None for a scene without a relation.
    """

    outcomes: tuple[str, ...]
    found: int
    related: bool | None = None

    @property
    def all_present(self) -> bool:
        """Every thing is present; there may be more."""
        return all(outcome == PRESENT for outcome in self.outcomes)

    @property
    def exact(self) -> bool:
        """Every thing is present, and nothing else."""
        return self.all_present and self.found == len(self.outcomes)


def detect(image: np.ndarray) -> list[Found]:
    """Find the things in an image [H,W,3], uint8 or float in [0, 1]; largest first."""
    pixels, background = _pixels(image), background_of(image)
    smooth = ndimage.median_filter(pixels, size=(3, 3, 1))
    palette = np.array([*COLORS.values()], np.float32)
    nearest = np.linalg.norm(smooth[:, :, None] - palette, axis=-1).argmin(-1)
    foreground = np.linalg.norm(smooth - background, axis=-1) > FOREGROUND
    found = []
    for index, color in enumerate(COLORS):
        mask = foreground & (nearest == index)
        # Opening removes one-pixel rims where an edge blends into another colour.
        cores, count = ndimage.label(ndimage.binary_opening(mask, np.ones((2, 2))))
        for core in range(1, count + 1):
            patch = cores == core
            if patch.sum() >= _MIN_AREA:
                found.append(_describe(color, _silhouette(patch, pixels, background)))
    return sorted((f for f in found if f.area >= _MIN_AREA), key=lambda f: -f.area)


def background_of(image: np.ndarray) -> np.ndarray:
    """The median colour [3] (RGB of 255) at the edges of an image."""
    pixels = _pixels(image)
    edges = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    return np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)


def read(image: np.ndarray, scene: Scene) -> Reading:
    """Compare an image with the scene it should show."""
    found = detect(image)
    outcomes = tuple(_outcome(thing, scene, found) for thing in scene.things)
    related = None
    if scene.relation:
        dx, dy = RELATIONS[scene.relation]
        first, second = ([f for f in found if f.thing == thing] for thing in scene.things[:2])
        related = any((a.x - b.x) * dx + (a.y - b.y) * dy >= _APART for a in first for b in second)
    return Reading(outcomes, len(found), related)


def _pixels(image: np.ndarray) -> np.ndarray:
    return np.asarray(image, np.float32) * (1.0 if np.asarray(image).dtype == np.uint8 else 255.0)


def _outcome(thing: Thing, scene: Scene, found: list[Found]) -> str:
    if any(f.thing == thing for f in found):
        return PRESENT
    others = [f for f in found if f.thing not in scene.things]
    if any(f.shape == thing.shape for f in others):
        return MISCOLORED
    return MISSHAPEN if any(f.color == thing.color for f in others) else NEGLECTED


def _silhouette(patch: np.ndarray, pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The patch with its antialiased rim: pixels nearer to its own colour than to the background."""
    inner = ndimage.binary_erosion(patch)
    color = np.median(pixels[inner if inner.any() else patch], axis=0)
    axis = color - background
    share = (pixels - background) @ axis / (axis @ axis)
    off = np.linalg.norm(pixels - background - share[..., None] * axis, axis=-1)
    rim = ndimage.binary_dilation(patch, np.ones((3, 3)), iterations=2)
    near, _ = ndimage.label((rim & (share > 0.5) & (off < 60)) | patch)
    labels = np.bincount(near[patch])
    return ndimage.binary_fill_holes(near == labels.argmax())


def _describe(color: str, mask: np.ndarray) -> Found:
    y, x = np.nonzero(mask)
    grid = _normalised(mask)
    overlaps = {shape: _overlap(grid, template) for shape, template in _templates().items()}
    shape = max(overlaps, key=overlaps.__getitem__)
    best = overlaps[shape]
    return Found(color, shape if best >= _MIN_OVERLAP else "", float(x.mean()), float(y.mean()), len(x), best)


def _normalised(mask: np.ndarray) -> np.ndarray:
    """The mask around its centroid, scaled to unit area; stray pixels change neither much."""
    area = float(mask.sum())
    y, x = np.nonzero(mask)
    grid = np.linspace(-1.1, 1.1, _GRID) * np.sqrt(area)
    at = np.meshgrid(y.mean() + grid, x.mean() + grid, indexing="ij")
    return ndimage.map_coordinates(mask.astype(np.float32), at, order=1)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


@cache
def _templates() -> dict[str, np.ndarray]:
    """The mean silhouette of each shape over the sizes that occur."""
    return {shape: np.mean([_normalised(coverage(shape, r) > 0.5) for r in _RADII], axis=0) for shape in SHAPES}
