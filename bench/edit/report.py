"""The results as a table, as JSON, and as a sheet of images."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from ebca.bench.alignment.report import rate_cell, write_sheet
from ebca.bench.alignment.statistics import Paired, compare, share_interval
from ebca.bench.edit.cases import Case, load_image
from ebca.bench.edit.judging import CLIP_SOURCE, CLIP_TARGET, LPIPS, STRUCTURE
from ebca.bench.edit.making import Edits, Item

ACCURACY = "clip_accuracy"
BACKGROUND, WHOLE = "background", "whole image"

_CELL = 192
_MARGIN = 6
_TEXT = 16


@dataclass(frozen=True)
class Result:
    """One case. values: of each method, one entry per image. The other methods are compared with the first."""

    case: Case
    values: dict[str, list[dict[str, Any]]]

    @property
    def region(self) -> str:
        """Where LPIPS was measured."""
        return WHOLE if self.case.masks is None else BACKGROUND

    @property
    def measures(self) -> tuple[str, ...]:
        """Names for `vector`."""
        first = next(iter(self.values.values()))[0]
        found = {ACCURACY: CLIP_TARGET, LPIPS: LPIPS, STRUCTURE: STRUCTURE}
        return tuple(name for name, value in found.items() if value in first)

    def vector(self, method: str, measure: str) -> np.ndarray:
        """One number per image. CLIP accuracy: 1 for an image that is closer to the target text, else 0."""
        rows = self.values[method]
        if measure == ACCURACY:
            return np.array([float(row[CLIP_TARGET] > row[CLIP_SOURCE]) for row in rows])
        return np.array([row[measure] for row in rows], float)

    def compared(self, method: str, measure: str) -> Paired:
        """A method against the first on the same images. p: sign test, which for accuracy is McNemar's."""
        return compare(self.vector(next(iter(self.values)), measure), self.vector(method, measure))


def to_json(results: Sequence[Result], settings: dict[str, Any]) -> dict[str, Any]:
    """Settings, means, paired differences, and every value."""
    return {"settings": settings, "cases": {result.case.name: _plain(result) for result in results}}


def _plain(result: Result) -> dict[str, Any]:
    first = next(iter(result.values))
    methods: dict[str, Any] = {}
    for method, rows in result.values.items():
        methods[method] = {name: float(result.vector(method, name).mean()) for name in result.measures}
        if ACCURACY in result.measures:
            methods[method]["interval"] = share_interval(result.vector(method, ACCURACY))
        methods[method]["seconds_per_image"] = float(np.mean([row["seconds"] for row in rows]))
    case = result.case
    return {
        "source": case.source,
        "target": case.target,
        "add": case.add,
        "remove": case.remove,
        "recipe": asdict(case.recipe),
        "images": len(case.images),
        "lpips_region": result.region if LPIPS in result.measures else None,
        # Who said where the object is.
        "masks": None if case.masks is None else case.segmenter or "given",
        "object": case.object,
        "methods": methods,
        "compared": {
            method: {name: asdict(result.compared(method, name)) for name in result.measures}
            for method in result.values
            if method != first
        },
        "each": [
            {"image": file.name} | {method: rows[i] for method, rows in result.values.items()}
            for i, file in enumerate(case.images)
        ],
    }


def print_report(results: Sequence[Result], console: Console) -> None:
    """Print a table per case: every measure of every method, and differences from the first method."""
    for result in results:
        case, first = result.case, next(iter(result.values))
        table = Table(title=f"{case.name}: {len(case.images)} images, '{case.source}' to '{case.target}'")
        for column in ("measure", "method", "mean", f"difference from {first} (95 %)", "higher / lower", "p"):
            table.add_column(column, no_wrap=True)
        table.add_column("s per image", justify="right")
        for measure in result.measures:
            for number, method in enumerate(result.values):
                seconds = np.mean([row["seconds"] for row in result.values[method]])
                ends = number == len(result.values) - 1
                cells = [_title(result, measure), method, *_cells(result, measure, method, method == first)]
                table.add_row(*cells, f"{seconds:.2f}", end_section=ends)
        console.print(table)
        if LPIPS in result.measures and result.region == WHOLE:
            console.print(
                "There are no masks, so LPIPS is of the whole image, the edited object included; "
                "--segmenter finds the object."
            )
        elif LPIPS in result.measures and case.segmenter is not None:
            console.print(f"The object is what {case.segmenter} finds for '{case.object}'; look at OUTPUT/masks.")
    console.print(
        "CLIP accuracy: images closer to the target text than to the source text; higher is better. LPIPS and "
        "structure: lower is better. p: sign test, for CLIP accuracy McNemar's."
    )


def _title(result: Result, measure: str) -> str:
    where = "background" if result.region == BACKGROUND else WHOLE
    return {ACCURACY: "CLIP accuracy", LPIPS: f"LPIPS, {where}", STRUCTURE: "structure distance"}[measure]


def _cells(result: Result, measure: str, method: str, is_first: bool) -> tuple[str, str, str, str]:
    """The mean, the difference with its interval, how many images got higher and lower, p."""
    values, accuracy = result.vector(method, measure), measure == ACCURACY
    mean = rate_cell(values) if accuracy else f"{values.mean():.4f}"
    if is_first:
        return mean, "", "", ""
    paired = result.compared(method, measure)
    found = (paired.difference, paired.low, paired.high)
    low, middle, high = (f"{100 * v:+.1f}" if accuracy else f"{v:+.4f}" for v in (found[1], found[0], found[2]))
    return mean, f"{middle} ({low} to {high})", f"{paired.gained} / {paired.lost}", paired.p_text


def save_grid(results: Sequence[Result], edits: Edits, size: tuple[int, int], count: int, file: Path) -> None:
    """Write a sheet with a row per image, the first `count` of each case: the image before, then every method.

    Raises:
        ParameterError: the file cannot be written.
    """
    rows = [(result, index) for result in results for index in range(min(count, len(result.case.images)))]
    methods = list(results[0].values)
    width, height = _CELL, round(_CELL * size[1] / size[0])
    cell = (width + _MARGIN, height + _TEXT + _MARGIN)
    sheet = Image.new("RGB", (_MARGIN + (len(methods) + 1) * cell[0], _TEXT + len(rows) * cell[1]), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, title in enumerate(("before", *methods)):
        pen.text((_MARGIN + place * cell[0], 1), title, fill="gray", font=font)
    for number, (result, index) in enumerate(rows):
        top = _TEXT + number * cell[1]
        pen.text((_MARGIN, top), f"{result.case.source} to {result.case.target}", fill="black", font=font)
        for place, image in enumerate(_row(result, index, methods, edits, size)):
            sheet.paste(image.resize((width, height)), (_MARGIN + place * cell[0], top + _TEXT))
    write_sheet(sheet, file)


def _row(
    result: Result, index: int, methods: Sequence[str], edits: Edits, size: tuple[int, int]
) -> Iterator[Image.Image]:
    yield load_image(result.case.images[index], size)
    for method in methods:
        yield edits.image(Item(result.case, index, method))
