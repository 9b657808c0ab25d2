"""Scenes of coloured shapes: vocabulary, outlines, and captions.

Training draws these scenes, the benchmark asks for them, and the detector reads them back from images. A scene has one
to three things of different colours and shapes; two things may be in a relation.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from ebca.errors import ParameterError

_SUPERSAMPLE = 8
SIZE = 64
"""Height and width of an image in pixels."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 145, 30),
    "yellow": (245, 225, 50),
    "green": (45, 165, 65),
    "cyan": (60, 205, 220),
    "blue": (40, 75, 220),
    "purple": (135, 55, 185),
    "pink": (245, 130, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
BACKGROUNDS: tuple[tuple[int, int, int], ...] = ((250, 250, 250), (190, 190, 190), (70, 70, 70), (10, 10, 10))

RELATIONS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Direction (x, y; y grows downwards) in which the first thing lies, seen from the second."""


@dataclass(frozen=True)
class Thing:
    """One coloured shape."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"a{'n' if self.color[0] in 'aeiou' else ''} {self.color} {self.shape}"


UNSEEN = frozenset(
    Thing(color, shape)
    for color, shape in (
        ("purple", "circle"),
        ("orange", "square"),
        ("pink", "triangle"),
        ("red", "star"),
        ("green", "heart"),
        ("cyan", "cross"),
    )
)
"""Pairs of colour and shape that never occur together in training; each colour and each shape occurs with others."""


@dataclass(frozen=True)
class Scene:
    """Things in the order of the caption. `relation`: where the first of two things lies, seen from the second."""

    things: tuple[Thing, ...]
    relation: str | None = None

    def caption(self) -> str:
        """Such as "a red circle", "a red circle and a blue star", "a red circle left of a blue star"."""
        words = [str(thing) for thing in self.things]
        if self.relation:
            return f"{words[0]} {self.relation} {words[1]}"
        return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def parse(caption: str) -> Scene:
    """The scene that a caption describes.

    Raises:
        ParameterError: the caption does not have the form that `Scene.caption` writes.
    """
    names = [Thing(*found) for found in re.findall(rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})", caption)]
    relation = next((name for name in RELATIONS if f" {name} " in caption), None)
    scene = Scene(tuple(names), relation)
    if not names or scene.caption() != caption:
        raise ParameterError(f"'{caption}' is not a caption of coloured shapes, such as 'a red circle and a blue star'")
    return scene


def outline(shape: str) -> np.ndarray:
    """The shape as a polygon [n,2] (x, y), approximately within the unit circle; y grows downwards."""
    turn = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    if shape == "circle":
        return 0.92 * np.stack([np.cos(turn), np.sin(turn)], 1)
    if shape == "square":
        return 0.82 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    if shape == "triangle":
        return np.array([(0, -0.95), (1.0, 0.85), (-1.0, 0.85)])
    if shape == "star":
        spikes = np.arange(10) * math.pi / 5
        radius = np.where(np.arange(10) % 2 == 0, 1.08, 0.46)
        return np.stack([radius * np.sin(spikes), -radius * np.cos(spikes) + 0.08], 1)
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([x / 16.5, -(y + 2) / 16.5], 1)
    if shape == "cross":
        arm = 0.32
        quarter = [(arm, -arm), (1, -arm), (1, arm), (arm, arm)]
        points = []
        for k in range(4):
            c, s = round(math.cos(k * math.pi / 2)), round(math.sin(k * math.pi / 2))
            points += [(c * x - s * y, s * x + c * y) for x, y in quarter]
        return 0.95 * np.array(points)
    raise ParameterError(f"there is no shape '{shape}'", f"there are {', '.join(SHAPES)}")


@cache
def coverage(shape: str, radius: float) -> np.ndarray:
    """The share [2n,2n] in [0, 1] of each pixel that a shape of that radius covers, centred between the middle pixels.

    radius: in pixels, a multiple of 0.5.
    """
    size = 2 * (int(radius) + 3) * _SUPERSAMPLE
    image = Image.new("L", (size, size), 0)
    points = outline(shape) * (radius * _SUPERSAMPLE) + size / 2
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=255)
    return np.asarray(image.reduce(_SUPERSAMPLE), np.float32) / 255


def paint(image: np.ndarray, thing: Thing, x: int, y: int, radius: float, color: Sequence[float]) -> None:
    """Draw a thing with antialiased edges on a float32 image [H,W,3], in place; parts outside the image are cut off.

    x, y, radius: in pixels; the radius is a multiple of 0.5.
    color: RGB of 255.
    """
    mask = coverage(thing.shape, radius)
    half = mask.shape[0] // 2
    top, left = y - half, x - half
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + 2 * half, len(image)), min(left + 2 * half, len(image[0]))
    patch = image[y0:y1, x0:x1]
    patch += mask[y0 - top : y1 - top, x0 - left : x1 - left, None] * (np.asarray(color, np.float32) - patch)
