"""Score a change by reading the images before and after it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ebca.bench.alignment.detector import FOREGROUND, Found, background_of, detect
from ebca.bench.alignment.scenes import Thing
from ebca.bench.tasks.cases import Case

# Pixels that an unchanged thing may appear to move: a tenth of its size, more than the error of the detector.
_STILL = 4.0
# Largest distance in pixels to the old centre at which a thing is in place. Outlines differ in their centres.
_IN_PLACE = 6.0


@dataclass(frozen=True)
class Score:
    """checks: a success needs all of them. notes: further facts, which do not count."""

    checks: Mapping[str, bool]
    notes: Mapping[str, bool]

    @property
    def success(self) -> bool:
        return all(self.checks.values())


def score(case: Case, after: np.ndarray) -> Score:
    """Compare the resulting image [H,W,3] uint8 of a case with the one before.

    Checks of an edit: "new" (the new thing is there), "gone" (the old one is not), "kept" (the other thing has not
    moved), "background" (its colour has not changed). Checks of inpainting: "new" (the new thing is in the hole),
    "gone" (what was in the hole), "kept", "outside" (no pixel outside the hole has changed). Notes: "exact" (nothing
    but the two things); for an edit "in place" (the new thing is where the old one was), for inpainting "background"
    (the rim of the hole has the colour of the background).
    """
    wish, before, found = case.wish, detect(case.before), detect(after)
    news = [f for f in found if f.thing == wish.new]
    kept = _only(before, wish.kept)
    checks = {
        "new": bool(news),
        "gone": not any(f.thing == wish.old for f in found),
        "kept": any(f.thing == wish.kept and _distance(f, kept) <= _STILL for f in found),
    }
    notes = {"exact": len(found) == 2 and all(any(f.thing == t for f in found) for t in wish.target.things)}
    background = background_of(case.before)
    if case.mask is None:
        assert wish.old is not None
        old = _only(before, wish.old)
        checks["background"] = _alike(background_of(after), background)
        notes["in place"] = any(_distance(f, old) <= _IN_PLACE for f in news)
    else:
        hole = case.mask > 0
        checks["new"] = any(hole[round(f.y), round(f.x)] for f in news)
        checks["outside"] = bool((after[~hole] == case.before[~hole]).all())
        rows, columns = hole.any(1), hole.any(0)
        notes["background"] = _alike(background_of(after[rows][:, columns]), background)
    return Score(checks, notes)


def psnr(before: np.ndarray, after: np.ndarray) -> float:
    """PSNR of two uint8 images in dB; 99 if they are equal."""
    error = float(np.square(before.astype(float) - after).mean())
    return min(10 * float(np.log10(255**2 / error)), 99.0) if error else 99.0


def _only(found: list[Found], thing: Thing) -> Found:
    """A thing of an image that is known to contain it."""
    return next(f for f in found if f.thing == thing)


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the detector would not distinguish two colours."""
    return bool(np.linalg.norm(a - b) <= FOREGROUND)


def _distance(a: Found, b: Found) -> float:
    return float(np.hypot(a.x - b.x, a.y - b.y))
