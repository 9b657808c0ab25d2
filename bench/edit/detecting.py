"""Masks of the objects in images that come without: what a segmenter finds for a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ebca.bench.alignment.journal import Journal
from ebca.bench.edit.cases import Case, digest, load_image
from ebca.errors import ParameterError
from ebca.result_files import replacing

Probabilities = Callable[[Sequence[Image.Image], str], list[np.ndarray]]
"""What `Segmenter.probabilities` does."""

_NAMED = 3


@dataclass(frozen=True)
class Detection:
    """How masks are made.

    name: of the segmenter, for the journal and the results.
    probabilities: finds what a text says in images.
    threshold: a pixel at least as probable belongs to the object.
    """

    name: str
    probabilities: Probabilities
    threshold: float = 0.5


def with_masks(
    cases: Sequence[Case],
    detection: Detection,
    output: Path,
    journal: Journal,
    size: tuple[int, int],
    batch: int,
) -> list[Case]:
    """The cases, those without masks with masks of the objects that are found; they are written to OUTPUT/masks.

    Masks that were made in the same way are kept.

    Args:
        size: width and height of the masks in pixels, the engine's.
        batch: how many images are read at a time.

    Raises:
        ParameterError: in some images nothing is found, or the object leaves no background.
    """
    return [
        case if case.masks is not None else _with_masks(case, detection, output, journal, size, batch) for case in cases
    ]


def _with_masks(
    case: Case, detection: Detection, output: Path, journal: Journal, size: tuple[int, int], batch: int
) -> Case:
    masks = {image: output / "masks" / case.name / f"{image.stem}.png" for image in case.images}
    waiting = [
        image for image, mask in masks.items() if not _is_made(mask, journal, _facts(case, image, detection, size))
    ]
    useless: list[str] = []
    for start in range(0, len(waiting), batch):
        some = waiting[start : start + batch]
        found = detection.probabilities([load_image(image, size) for image in some], case.object)
        for image, probable in zip(some, found, strict=True):
            inside = probable >= detection.threshold
            if inside.any() and not inside.all():
                _keep(masks[image], inside, journal, _facts(case, image, detection, size))
            else:
                useless.append(f"'{image.name}'")
    if useless:
        more = f" and {len(useless) - _NAMED} more" if len(useless) > _NAMED else ""
        raise ParameterError(
            f"case '{case.name}': '{case.object}' is found nowhere or everywhere in "
            f"{', '.join(useless[:_NAMED])}{more}",
            "give another --threshold, another object or masks, or leave these images out",
        )
    return replace(case, masks=tuple(masks.values()), segmenter=detection.name)


def _is_made(mask: Path, journal: Journal, facts: dict[str, Any]) -> bool:
    found = journal.get(facts)
    return isinstance(found, dict) and mask.is_file() and digest(mask) == found.get("sha256")


def _keep(mask: Path, inside: np.ndarray, journal: Journal, facts: dict[str, Any]) -> None:
    with replacing(mask) as stream:
        Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).save(stream, "PNG")
    journal.add(facts, {"sha256": digest(mask)})


def _facts(case: Case, image: Path, detection: Detection, size: tuple[int, int]) -> dict[str, Any]:
    """What a mask depends on."""
    facts = {"segmenter": detection.name, "threshold": detection.threshold, "object": case.object}
    return facts | {"case": case.name, "image": image.name, "from": digest(image), "size": size}
