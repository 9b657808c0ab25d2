"""ebca-bench alignment: do images show what the prompt asks for, with several methods?"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ebca import console
from ebca.bench import options
from ebca.bench.alignment.effects import effects
from ebca.bench.alignment.journal import Journal
from ebca.bench.alignment.measure import Alignment, Settings, measure, to_json
from ebca.bench.alignment.methods import BASE, add_methods, add_settings, methods
from ebca.bench.alignment.prompts import KINDS, SPLITS
from ebca.bench.alignment.report import effects_json, markdown, print_effects, print_report, save_grid
from ebca.errors import ParameterError
from ebca.runtime.cli.options import add_machine

PROGRAM = "ebca-bench alignment"

_DESCRIPTION = """\
Make images of coloured shapes from the same prompts and seeds with several methods: base (gammas of 0, no subjects),
ebcu (the context update with the given gammas), exclusive (every thing of the prompt is a subject), and both. Read the
shapes back from the images by classical image processing, and compare.
"""

_EXAMPLES = """examples:
  ebca-bench alignment --engine shapes
  ebca-bench alignment --engine shapes --split development --kinds two three --methods base ebcu --gamma-attn 0.02
  ebca-bench alignment --engine shapes --methods base ebcu exclusive both --count 500 \\
      --scheduler ddim pndm --steps ddim:25 pndm:50 --guidance-scale 4 7.5 --json alignment.json
  ebca-bench alignment --markdown alignment.json

Choose settings on the development prompts, and use the held-out prompts once. With --json, the same command continues
an interrupted run.
"""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = options.command_line(PROGRAM, _DESCRIPTION, _EXAMPLES)
    options.add_engine(p, default="shapes")
    options.add_cases(p, SPLITS, "image", "images of each kind, method and sampling")
    add_methods(p, (BASE, "exclusive"))
    p.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        metavar="KIND",
        help=f"kinds of prompts: {', '.join(KINDS)} (default: all). 'unseen' has a pair of colour and shape that never "
        "occurred together in training",
    )
    p.add_argument("--steps", nargs="+", default=["25"], metavar="N",
                   help="scheduler steps, or one number per scheduler: ddim:25 pndm:50 (default: 25)")  # fmt: skip
    p.add_argument("--guidance-scale", type=float, nargs="+", metavar="G", help="default: the engine's")
    p.add_argument("--scheduler", nargs="+", default=["ddim"], metavar="NAME", help="default: ddim")
    options.add_batch_size(p, 16)
    p.add_argument(
        "--effects",
        action="store_true",
        help="also show how far the update moves the contexts, and the energies of each layer, for one batch per kind",
    )
    options.add_json(p, "rates, differences and every reading")
    p.add_argument("--markdown", type=console.path, nargs="+", metavar="FILE.json",
                   help="only print the tables of such files, in Markdown")  # fmt: skip
    options.add_grid(p, "all methods side by side, with the first scheduler and guidance scale", "prompts")
    add_settings(p, "the words for colours and shapes")
    add_machine(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    ended = "interrupted; with --json, the same command continues"
    return console.run(PROGRAM, lambda: _run(parser().parse_args(argv)), interrupted=ended)


def _run(args: argparse.Namespace) -> int:
    if args.markdown:
        for file in args.markdown:
            print(markdown(_read(file)))
        return 0
    compared, every = methods(args), _settings(args)
    options.check_results(args)
    journal = Journal(None if args.json is None else args.json.with_name(f"{args.json.name}.progress"))
    alignments, inside = [], []
    with options.opened_engine(args) as (engine, line):
        for number, settings in enumerate(every):

            def show(done: int, total: int, name: str, number: int = number) -> None:
                before = number * total
                line.update(
                    f"{name}: {before + done} of {len(every) * total} images", before + done, len(every) * total
                )

            keep = args.grid_rows if args.grid is not None and not number else 0
            found = measure(engine, compared, settings, keep_images=keep, on_images=show, journal=journal)
            alignments.append(found)
            inside.append(effects(engine, compared, settings) if args.effects else None)
    runs = [
        to_json(found) | ({"effects": effects_json(moved)} if moved else {})
        for found, moved in zip(alignments, inside, strict=True)
    ]
    out = options.output(170)
    print_report({"runs": runs}, f"{args.split} prompts; p: McNemar's test; shares and differences in %", out)
    for moved in inside:
        if moved:
            print_effects(moved, out)
    if args.json is not None:
        console.write_json(args.json, {"runs": runs})
        journal.remove()
    if args.grid is not None:
        save_grid(alignments[0], args.grid)
    faults = [found for found in alignments if not _unchanged(found)]
    return 1 if faults else 0


def _settings(args: argparse.Namespace) -> list[Settings]:
    """One for each scheduler and guidance scale."""
    steps = _steps(args.steps, args.scheduler)
    return [
        Settings(
            split=args.split,
            kinds=tuple(args.kinds),
            count=args.count,
            seed=args.seed,
            steps=steps[scheduler],
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            batch=args.batch_size,
        )
        for scheduler in dict.fromkeys(args.scheduler)
        for guidance_scale in dict.fromkeys(args.guidance_scale or [None])
    ]


def _steps(texts: Sequence[str], schedulers: Sequence[str]) -> dict[str, int]:
    """Steps by scheduler from one number for all, or from NAME:N for each."""
    named = dict(text.rpartition(":")[::2] for text in texts)
    if set(named) == {""} and len(texts) == 1:
        named = dict.fromkeys(schedulers, named[""])
    if set(named) != set(schedulers):
        raise ParameterError(
            f"--steps is '{' '.join(texts)}' for --scheduler {' '.join(schedulers)}",
            "give one number, or one per scheduler, such as ddim:25 pndm:50",
        )
    try:
        return {scheduler: int(number) for scheduler, number in named.items()}
    except ValueError:
        raise ParameterError(f"--steps is '{' '.join(texts)}'", "give whole numbers, such as 25 or ddim:25") from None


def _unchanged(alignment: Alignment) -> bool:
    """Say whether exclusive attention left images of one thing alone, as it must: that thing has no other subject."""
    if "one" not in alignment.settings.kinds or not any(m.name == "exclusive" for m in alignment.methods):
        return True
    count, same = alignment.settings.count, alignment.identical("exclusive", "one")
    print(f"images of one thing: {same} of {count} have the same pixels with exclusive as with base")
    if same != count:
        print("They must all be the same, for a single subject is not guided: this is an error of the runtime.")
    return same == count


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterError(f"cannot read '{file}': {error}", "name a file that --json has written") from None
    return found if isinstance(found, dict) else {}
