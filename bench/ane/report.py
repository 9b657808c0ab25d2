"""The scores of several methods as a table and as a sheet of images."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from ebca.bench.alignment.report import write_sheet
from ebca.bench.ane.folder import Folder
from ebca.bench.ane.measure import Scores
from ebca.bench.ane.scores import MEASURES
from ebca.errors import ParameterError

_COLUMNS = ("prompts", "measure", "method", "mean", "difference (95 %)", "prompts up / down", "p")
_SIDE = 256
_MARGIN = 6
_TEXT = 14


def print_report(scores: Scores, console: Console) -> None:
    """Print the mean similarities, and the paired differences from the base."""
    table = Table(title=f"similarities, {scores.settings.seeds} images per prompt; p: sign test over prompts")
    for column in _COLUMNS:
        table.add_column(column, no_wrap=True)
    for subset, prompts in scores.prompts.items():
        compared = {m.name: scores.compared(subset, m.name) for m in scores.methods[1:]}
        for number, (measure, title) in enumerate(MEASURES.items()):
            for method in scores.methods:
                mean = f"{scores.means(subset, method.name)[number].mean():.4f}"
                cells = ("", "", "")
                if method.name in compared:
                    paired = compared[method.name][measure]
                    cells = (
                        f"{paired.difference:+.4f} ({paired.low:+.4f} to {paired.high:+.4f})",
                        f"{paired.gained} / {paired.lost}",
                        paired.p_text,
                    )
                ends = method is scores.methods[-1]
                table.add_row(f"{subset} ({len(prompts)})", title, method.name, mean, *cells, end_section=ends)
    console.print(table)


def save_grid(scores: Scores, folder: Folder, rows: int, file: Path) -> None:
    """Write a sheet with one row per prompt, `rows` of each subset, and one column per method, all with the first seed.

    Raises:
        ParameterError: the file cannot be written, or an image is not in the folder.
    """
    shown = [prompt for prompts in scores.prompts.values() for prompt in prompts[:rows]]
    height = _SIDE + _TEXT + _MARGIN
    size = (len(scores.methods) * (_SIDE + _MARGIN) + _MARGIN, len(shown) * height + _TEXT)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, prompt in enumerate(shown):
        pen.text((_MARGIN, _TEXT + row * height), prompt.text, fill="black", font=font)
        for column, method in enumerate(scores.methods):
            x = _MARGIN + column * (_SIDE + _MARGIN)
            image = folder.image(method, prompt, scores.settings.seed)
            if image is None:
                raise ParameterError(
                    f"the image of '{prompt.text}' by {method.name} was not kept", "leave --grid out for such scores"
                )
            sheet.paste(image.resize((_SIDE, _SIDE)), (x, 2 * _TEXT + row * height))
            if not row:
                pen.text((x, 1), method.name, fill="gray", font=font)
    write_sheet(sheet, file)
