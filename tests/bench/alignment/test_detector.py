"""The detector against images whose content is known."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from ebca.bench.alignment.detector import detect, read
from ebca.bench.alignment.scenes import COLORS, SHAPES, Scene, Thing, parse

sys.path.append(str(Path(__file__).parents[3] / "examples" / "shapes"))
from draw import draw, place, random_scene


def _noisy(sigma: float) -> Callable[[np.ndarray], np.ndarray]:
    def add(image: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(int(image.sum())).normal(0, sigma, image.shape)
        return np.clip(image + noise, 0, 255).astype(np.uint8)

    return add


def _blurred(image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(image, (0.6, 0.6, 0))


def _as_float(image: np.ndarray) -> np.ndarray:
    return image / np.float32(255)


@pytest.mark.parametrize("change", [_as_float, _noisy(8), _noisy(16), _blurred], ids=["clean", "noise", "more", "blur"])
def test_drawn_images_are_read_correctly(change: Callable[[np.ndarray], np.ndarray]) -> None:
    """The benchmark needs an error well below the differences it should detect."""
    rng = np.random.default_rng(11)
    wrong = []
    for index in range(600):
        count = 1 + index % 3
        scene = random_scene(rng, count, related=count == 2 and index % 2 == 0, unseen=True)
        reading = read(change(draw(rng, scene)[0]), scene)
        if not reading.exact or reading.related is False:
            wrong.append(scene.caption())
    assert len(wrong) <= 3, wrong


def test_it_finds_positions() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        image, placed = draw(rng, random_scene(rng, 1))
        (found,) = detect(image)
        assert np.hypot(found.x - placed[0].x, found.y - placed[0].y) <= 0.25 * placed[0].radius


def test_wrong_images_are_not_read_as_right() -> None:
    """Every image is read against a scene that differs in one word."""
    rng = np.random.default_rng(3)
    for index in range(100):
        scene = random_scene(rng, 1 + index % 3)
        image, _ = draw(rng, scene)
        first = scene.things[0]
        colors = [c for c in COLORS if c not in {t.color for t in scene.things}]
        shapes = [s for s in SHAPES if s not in {t.shape for t in scene.things}]
        recolored, reshaped = Thing(str(rng.choice(colors)), first.shape), Thing(first.color, str(rng.choice(shapes)))
        for other, outcome in ((recolored, "miscolored"), (reshaped, "misshapen")):
            reading = read(image, Scene((other, *scene.things[1:])))
            assert not reading.all_present and not reading.exact
            assert reading.outcomes == (outcome, *["present"] * (len(scene.things) - 1))


def test_an_additional_thing_is_not_exact() -> None:
    rng = np.random.default_rng(4)
    scene = random_scene(rng, 2)
    reading = read(draw(rng, scene)[0], Scene(scene.things[:1]))
    assert reading.all_present and not reading.exact


def test_swapped_colors_are_both_wrong() -> None:
    rng = np.random.default_rng(4)
    image, _ = draw(rng, parse("a red circle and a blue square"))
    assert read(image, parse("a blue circle and a red square")).outcomes == ("miscolored", "miscolored")


def test_a_missing_thing_is_neglected() -> None:
    rng = np.random.default_rng(4)
    image, _ = draw(rng, parse("a red circle and a blue square"))
    reading = read(image, parse("a red circle, a blue square and a green star"))
    assert reading.outcomes == ("present", "present", "neglected")


def test_the_opposite_relation_does_not_hold() -> None:
    rng = np.random.default_rng(4)
    image, _ = draw(rng, parse("a red circle left of a blue square"))
    assert read(image, parse("a red circle left of a blue square")).related is True
    for other in ("right of", "above"):
        placed = parse(f"a red circle {other} a blue square")
        reading = read(image, placed)
        assert reading.all_present
        if other == "right of":
            assert reading.related is False
    assert read(image, parse("a red circle and a blue square")).related is None


def test_blobs_and_specks_are_not_shapes() -> None:
    image = np.full((64, 64, 3), 250, np.uint8)
    assert detect(image) == []
    image[10:14, 10:14] = COLORS["red"]  # a speck
    image[30:34, 4:60] = COLORS["blue"]  # a bar
    (bar,) = detect(image)
    assert bar.color == "blue" and bar.shape == ""


def test_things_do_not_overlap() -> None:
    rng = np.random.default_rng(8)
    for _ in range(100):
        placed = place(rng, random_scene(rng, 3))
        for i, a in enumerate(placed):
            assert a.radius <= a.x < 64 - a.radius and a.radius <= a.y < 64 - a.radius
            for b in placed[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + 2
