"""The results of the tasks as tables and as a sheet of images."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from ebca.bench.alignment.report import rate_cell, write_sheet
from ebca.bench.alignment.tables import difference_cells
from ebca.bench.tasks.measure import KindResult, Tasks
from ebca.bench.tasks.recipes import describe_recipe
from ebca.errors import ParameterError

_SCALE = 2
_MARGIN = 6
_TEXT = 14
_WIDEST = 340


def print_report(tasks: Tasks, console: Console) -> None:
    """Print a table per kind: success of every variant with its interval, failed checks, and paired differences."""
    for kind, result in tasks.results.items():
        first = result.variants[0]
        measures = result.attempts[first.name].measures
        title = f"{kind}: {tasks.settings.split}, {len(result.cases)} cases"
        if result.tried > len(result.cases):
            title += f" (of {result.tried} images; the others did not show their caption)"
        title += f"\n{first.name}: {describe_recipe(first.recipe)}"
        table = Table(title=title)
        table.add_column("variant")
        table.add_column("success (95 %)", no_wrap=True)
        for measure in measures[1:]:
            table.add_column(measure)
        table.add_column("difference (95 %)", no_wrap=True)
        table.add_column("gained / lost")
        table.add_column("p (McNemar)")
        table.add_column("s per image")
        for variant in result.variants:
            held = result.attempts[variant.name]
            row = [variant.name, rate_cell(held.vector("success"))]
            row += [f"{held.vector(measure).mean():.0%}" for measure in measures[1:]]
            row += difference_cells(result.compared(variant.name)) if variant is not first else ["", "", ""]
            table.add_row(*row, f"{held.seconds / len(result.cases):.2f}")
        console.print(table)
        if result.reconstruction:
            found = np.array(result.reconstruction)
            console.print(
                f"inverted and sampled again without an edit: PSNR {found.mean():.1f} dB "
                f"(median {np.median(found):.1f}, worst {found.min():.1f})"
            )


def save_grid(tasks: Tasks, file: Path) -> None:
    """Write a sheet with one row per kept case: the image before, the mask if any, and the result of each variant.

    Raises:
        ParameterError: the file cannot be written.
    """
    rows = [
        (kind, result, index)
        for kind, result in tasks.results.items()
        for index in range(len(result.attempts[result.variants[0].name].images))
    ]
    if not rows:
        raise ParameterError("no images were kept for the grid")
    strips = [_strip(result, index) for _, result, index in rows]
    height, width = strips[0].shape[0], max([_WIDEST, *(strip.shape[1] for strip in strips)])
    columns = 1 if len(rows) < 4 else 2
    per_column = -(-len(rows) // columns)
    line = height + _TEXT + _MARGIN
    sheet = Image.new("RGB", (columns * (width + _MARGIN) + _MARGIN, per_column * line + _MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, ((kind, result, index), strip) in enumerate(zip(rows, strips, strict=True)):
        x, y = _MARGIN + number // per_column * (width + _MARGIN), number % per_column * line
        wish = result.cases[index].wish
        pen.text((x, y), f"{kind}: {wish.old or 'nothing'} to {wish.new}, beside {wish.kept}", fill="black", font=font)
        sheet.paste(Image.fromarray(strip), (x, y + _TEXT + 2))
    write_sheet(sheet, file)


def _strip(result: KindResult, index: int) -> np.ndarray:
    """The images of a row side by side [H,W,3] uint8, enlarged, with a white margin after each."""
    case = result.cases[index]
    images = [case.before]
    if case.mask is not None:
        images.append(np.repeat(case.mask[..., None], 3, -1))
    images += [result.attempts[variant.name].images[index] for variant in result.variants]
    large = [np.repeat(np.repeat(image, _SCALE, 0), _SCALE, 1) for image in images]
    return np.concatenate([np.pad(one, ((0, 0), (0, _MARGIN), (0, 0)), constant_values=255) for one in large], 1)
