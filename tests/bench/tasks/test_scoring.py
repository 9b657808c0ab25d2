"""Every way to succeed and to fail, as drawn images that must be scored correctly."""

from collections.abc import Callable

import numpy as np
import pytest

from ebca.bench.alignment.detector import read
from ebca.bench.alignment.scenes import COLORS, Scene, Thing, paint, parse
from ebca.bench.tasks.cases import KINDS, Case, Wish, draw, task_of, wishes
from ebca.bench.tasks.scoring import psnr, score
from ebca.errors import ParameterError

GREY, BLACK = (190, 190, 190), (10, 10, 10)
SOURCE = parse("a red circle and a blue square")
EDIT = Wish(SOURCE, parse("a red star and a blue square"), 0)
FILL = Wish(Scene(SOURCE.things[:1]), SOURCE, 1)


def _image(*things: tuple[str, int, int], background: tuple[int, ...] = GREY) -> np.ndarray:
    """Things, such as ("red circle", x, y), of radius 11."""
    image = np.empty((64, 64, 3), np.float32)
    image[:] = background
    for words, x, y in things:
        color, shape = words.split()
        paint(image, Thing(color, shape), x, y, 11.0, COLORS[color])
    return np.rint(image).astype(np.uint8)


BEFORE = _image(("red circle", 15, 15), ("blue square", 46, 46))
EDITED = Case(EDIT, 0, BEFORE)


def test_a_right_edit_is_a_success() -> None:
    scored = score(EDITED, _image(("red star", 16, 14), ("blue square", 46, 47)))
    assert scored.success and all(scored.checks.values()) and all(scored.notes.values())


@pytest.mark.parametrize(
    ("after", "fails"),
    [
        (BEFORE, {"new", "gone"}),
        (_image(("red heart", 15, 15), ("blue square", 46, 46)), {"new"}),
        (_image(("green star", 15, 15), ("blue square", 46, 46)), {"new"}),
        (_image(("blue square", 46, 46)), {"new"}),
        (_image(("red star", 15, 15), ("blue square", 46, 46), ("red circle", 48, 14)), {"gone"}),
        (_image(("red star", 15, 15)), {"kept"}),
        (_image(("red star", 15, 15), ("purple square", 46, 46)), {"kept"}),
        (_image(("red star", 15, 15), ("blue square", 46, 40)), {"kept"}),
        (_image(("red star", 46, 46), ("blue square", 15, 15)), {"kept"}),
        (_image(("red star", 15, 15), ("blue square", 46, 46), background=(250, 250, 250)), {"background"}),
    ],
    ids=[
        "unchanged",
        "shape",
        "color",
        "lost",
        "both",
        "other-lost",
        "other-recolored",
        "moved",
        "swapped",
        "background",
    ],
)
def test_wrong_edits_fail_their_check(after: np.ndarray, fails: set[str]) -> None:
    scored = score(EDITED, after)
    assert {name for name, right in scored.checks.items() if not right} == fails
    assert not scored.success


def test_notes_do_not_count() -> None:
    elsewhere = score(EDITED, _image(("red star", 46, 14), ("blue square", 46, 46)))
    assert elsewhere.success and not elsewhere.notes["in place"] and elsewhere.notes["exact"]
    more = score(EDITED, _image(("red star", 15, 15), ("blue square", 46, 46), ("green heart", 46, 15)))
    assert more.success and more.notes["in place"] and not more.notes["exact"]


def _hole(*before: tuple[str, int, int], wish: Wish = FILL) -> Case:
    mask = np.zeros((64, 64), np.uint8)
    mask[28:64, 28:64] = 255
    return Case(wish, 0, _image(("red circle", 15, 15), *before), mask)


def test_right_inpainting_is_a_success() -> None:
    scored = score(_hole(), _image(("red circle", 15, 15), ("blue square", 46, 46)))
    assert scored.success and all(scored.notes.values())
    over = Wish(parse("a red circle and a green star"), SOURCE, 1)
    scored = score(_hole(("green star", 46, 46), wish=over), _image(("red circle", 15, 15), ("blue square", 45, 47)))
    assert scored.success and scored.checks["gone"]


def _with_pixel(image: np.ndarray) -> np.ndarray:
    changed = image.copy()
    changed[2, 60, 1] += 1
    return changed


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        (lambda before: before, {"new"}),
        (lambda before: _image(("red circle", 15, 15), ("blue heart", 46, 46)), {"new"}),
        (lambda before: _image(("red circle", 15, 15), ("blue square", 46, 14)), {"new", "outside"}),
        (lambda before: _image(("blue square", 46, 46)), {"kept", "outside"}),
        (lambda before: _with_pixel(_image(("red circle", 15, 15), ("blue square", 46, 46))), {"outside"}),
    ],
    ids=["empty", "shape", "beside the hole", "other lost", "one pixel"],
)
def test_wrong_inpainting_fails_its_check(change: Callable[[np.ndarray], np.ndarray], fails: set[str]) -> None:
    case = _hole()
    scored = score(case, change(case.before))
    assert {name for name, right in scored.checks.items() if not right} == fails


def test_the_thing_in_the_hole_must_disappear() -> None:
    case = _hole(("green star", 46, 46), wish=Wish(parse("a red circle and a green star"), SOURCE, 1))
    scored = score(case, case.before)
    assert {name for name, right in scored.checks.items() if not right} == {"new", "gone"}


def test_another_background_in_the_hole_is_noted() -> None:
    after = _image(("red circle", 15, 15))
    after[28:64, 28:64] = _image(("blue square", 46, 46), background=BLACK)[28:64, 28:64]
    scored = score(_hole(), after)
    assert scored.success and not scored.notes["background"]


def test_psnr() -> None:
    assert psnr(BEFORE, BEFORE) == 99
    assert psnr(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)) == 0
    assert psnr(BEFORE, BEFORE + np.uint8(1)) == pytest.approx(20 * np.log10(255), abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_wishes_change_one_thing(kind: str) -> None:
    asked = wishes(kind, "development", 7)
    first = [next(asked) for _ in range(60)]
    assert [seed for _, seed in first] == sorted({seed for _, seed in first})
    for wish, _ in first:
        assert wish.new not in wish.source.things and wish.kept in wish.source.things
        if task_of(kind) != "inpaint":
            assert wish.old is not None
            assert (wish.new.color == wish.old.color) == kind.endswith("shape")
            assert (wish.new.shape == wish.old.shape) == kind.endswith("color")
    assert {wish.changed for wish, _ in first} == ({1} if task_of(kind) == "inpaint" else {0, 1})
    again = wishes(kind, "development", 7)
    assert [next(again) for _ in range(60)] == first
    held_out = wishes(kind, "held-out", 7)
    assert {wish.source for wish, _ in first}.isdisjoint(
        next(held_out)[0].source for _ in range(60)
    ) or kind == "inpaint"
    assert {wish.target for wish, _ in first}.isdisjoint(next(held_out)[0].target for _ in range(60))


@pytest.mark.parametrize("hole", [None, 28, 32, 36, 40])
def test_drawn_images_show_the_source(hole: int | None) -> None:
    asked = wishes("real shape" if hole is None else "inpaint", "development", 0)
    wrong = 0
    for _ in range(60):
        wish, seed = next(asked)
        case = draw(wish, seed, hole)
        wrong += not read(case.before, wish.source).exact
        np.testing.assert_array_equal(case.before, draw(wish, seed, hole).before)
        if hole is not None:
            assert case.mask is not None and (case.mask > 0).sum() == hole**2
            kept = score(case, case.before).checks
            assert kept["kept"] and kept["outside"] and not kept["new"]
            # Nothing of the thing that stays is in the hole, and the hole begins where a latent does.
            filled = np.where(case.mask[..., None] > 0, case.before[0, 0], case.before)
            assert read(filled, Scene((wish.kept,))).exact
            assert all(int(edge) % 4 == 0 for edge in (np.argmax(case.mask.any(1)), np.argmax(case.mask.any(0))))
    assert wrong <= 1


@pytest.mark.parametrize("hole", [0, 4, 35, 48, 64, -4])
def test_holes_that_do_not_fit_are_refused(hole: int) -> None:
    wish, seed = next(wishes("inpaint", "development", 0))
    with pytest.raises(ParameterError, match="hole of"):
        draw(wish, seed, hole)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ParameterError, match="no cases 'edit size'"):
        next(wishes("edit size", "development", 0))
