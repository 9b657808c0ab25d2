"""Score edited images with the judges, and keep the scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ebca.bench.alignment.journal import Journal
from ebca.bench.edit.cases import digest, load_image, load_object
from ebca.bench.edit.making import Edits, Item, OnImages
from ebca.bench.judges.clip import Clip
from ebca.bench.judges.dino import Dino
from ebca.bench.judges.lpips import Lpips

CLIP_TARGET, CLIP_SOURCE, LPIPS, STRUCTURE = "clip_target", "clip_source", "lpips", "structure"

Values = list[dict[str, float]]


@dataclass(frozen=True)
class Judge:
    """A judge: what it is, for the journal, and what it says about pairs of images.

    name: method and model, such as "clip openai/clip-vit-base-patch32".
    score: values of edited images, from the items, the images before and the images after.
    masked: whether the mask of an image matters.
    """

    name: str
    score: Callable[[Sequence[Item], Sequence[Image.Image], Sequence[Image.Image]], Values]
    masked: bool = False


def clip_judge(clip: Clip, name: str) -> Judge:
    """The similarity of edited images to the target text and to the source text."""

    def score(items: Sequence[Item], _before: Sequence[Image.Image], after: Sequence[Image.Image]) -> Values:
        images = clip.images(after)
        target, source = (clip.texts([text(item) for item in items]) for text in (_target, _source))
        return [
            {CLIP_TARGET: float(image @ wanted), CLIP_SOURCE: float(image @ old)}
            for image, wanted, old in zip(images, target, source, strict=True)
        ]

    return Judge(f"clip {name}", score)


def dino_judge(dino: Dino, name: str) -> Judge:
    """The structure distance between the images before and after."""

    def score(_items: Sequence[Item], before: Sequence[Image.Image], after: Sequence[Image.Image]) -> Values:
        return [{STRUCTURE: float(value)} for value in dino.distances(before, after)]

    return Judge(f"dino {name}", score)


def lpips_judge(lpips: Lpips, net: str) -> Judge:
    """LPIPS between the images before and after: of the background where there are masks."""

    def score(items: Sequence[Item], before: Sequence[Image.Image], after: Sequence[Image.Image]) -> Values:
        objects = [_object(item, image.size) for item, image in zip(items, before, strict=True)]
        return [{LPIPS: float(value)} for value in lpips.distances(before, after, objects)]

    return Judge(f"lpips {net}", score, masked=True)


def judge(
    items: Sequence[Item],
    edits: Edits,
    judges: Sequence[Judge],
    journal: Journal,
    size: tuple[int, int],
    batch: int,
    on_images: OnImages,
) -> list[dict[str, Any]]:
    """The values of every item, all of which have been made, with the seconds that making it took."""
    for one in judges:
        keys = [_facts(item, one, edits) for item in items]
        waiting = [(item, key) for item, key in zip(items, keys, strict=True) if journal.get(key) is None]
        for start in range(0, len(waiting), batch):
            some = [item for item, _ in waiting[start : start + batch]]
            before = [load_image(item.source, size) for item in some]
            values = one.score(some, before, [edits.image(item) for item in some])
            for (_, key), value in zip(waiting[start : start + batch], values, strict=True):
                journal.add(key, value)
            on_images(one.name, len(some))
    return [_values(item, edits, judges, journal) for item in items]


def missing(items: Sequence[Item], edits: Edits, judges: Sequence[Judge], journal: Journal) -> int:
    """How many scores there are to compute; those of images that must be made count, too."""
    return sum(
        edits.record(item) is None or journal.get(_facts(item, one, edits)) is None for one in judges for item in items
    )


def _values(item: Item, edits: Edits, judges: Sequence[Judge], journal: Journal) -> dict[str, Any]:
    found: dict[str, Any] = {"seconds": _record(item, edits)["seconds"]}
    for one in judges:
        found |= journal.get(_facts(item, one, edits))
    return found


def _facts(item: Item, one: Judge, edits: Edits) -> dict[str, Any]:
    """What a score depends on."""
    facts = {"judge": one.name, "case": item.case.name, "image": item.source.name, "method": item.method}
    facts |= {"from": digest(item.source), "edited": _record(item, edits)["sha256"]}
    facts |= {"source": item.case.source, "target": item.case.target}
    mask = _mask(item)
    return facts | ({"mask": digest(mask) if mask else None} if one.masked else {})


def _record(item: Item, edits: Edits) -> dict[str, Any]:
    found = edits.record(item)
    assert found is not None, "scores are of images that have been made"
    return found


def _mask(item: Item) -> Path | None:
    return None if item.case.masks is None else item.case.masks[item.index]


def _object(item: Item, size: tuple[int, int]) -> np.ndarray | None:
    mask = _mask(item)
    return None if mask is None else load_object(mask, size)


def _target(item: Item) -> str:
    return item.case.target


def _source(item: Item) -> str:
    return item.case.source
