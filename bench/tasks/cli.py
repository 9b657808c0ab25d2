"""ebca-bench tasks: do edits and fillings come out as asked for, with and without the context update."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from ebca import console
from ebca.bench.alignment.prompts import SPLITS
from ebca.bench.tasks.cases import KINDS, TASKS, task_of
from ebca.bench.tasks.measure import Settings, measure, to_json
from ebca.bench.tasks.recipes import BASE, EBCU, FORMS, RECIPES, SWEEPS, UPDATES, Recipe, Update, Variant, candidates
from ebca.bench.tasks.report import print_report, save_grid
from ebca.errors import ParameterError
from ebca.runtime.cli import options

PROGRAM = "ebca-bench tasks"

_Setting = TypeVar("_Setting", Recipe, Update)

_EXAMPLES = """examples:
  ebca-bench tasks --engine shapes --json tasks.json --grid tasks.png
  ebca-bench tasks --engine shapes --task inpaint --count 20
  ebca-bench tasks --engine shapes --split development --sweep --task real --count 40
  ebca-bench tasks --engine shapes --split development --task edit --form swap --alpha 1 --tau 0.2

Choose settings on the development cases; use the held-out ones once.
"""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = argparse.ArgumentParser(
        PROGRAM,
        description="Change one thing in generated pictures (edit) and in drawn ones (real), and fill holes in drawn\n"
        "ones (inpaint), with gammas 0 (base) and with others (ebcu); read from the pictures whether that and nothing\n"
        "else has changed; compare. Settings that are not given are those found best on development cases.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--engine", default="shapes", metavar="DIR", help="engine directory or bundled name (default: shapes)"
    )
    p.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="which ones (default: all)")
    p.add_argument("--split", choices=SPLITS, default="held-out", help="which half of the prompts (default: held-out)")
    p.add_argument("--count", type=int, default=100, metavar="N", help="cases of each kind (default: 100)")
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the first case; the next has N + 1 (default: 0)"
    )
    p.add_argument("--batch-size", type=int, default=20, metavar="N", help="pictures at once (default: 20)")
    p.add_argument(
        "--sweep", nargs="*", choices=SWEEPS, metavar="WHAT",
        help=f"instead, try a table of settings, each against the one in use: {' or '.join(SWEEPS)} (default: both)",
    )  # fmt: skip
    p.add_argument("--json", metavar="FILE", help="also write rates, differences and every score there")
    p.add_argument(
        "--grid", type=Path, metavar="FILE.png", help="also write a sheet of pictures: before, mask, and after"
    )
    p.add_argument("--grid-rows", type=int, default=4, metavar="N", help="cases of each kind in the sheet (default: 4)")

    how = p.add_argument_group("how", "what is given here replaces the setting in use")
    how.add_argument("--steps", type=int, help="scheduler steps")
    how.add_argument("--guidance-scale", type=float, metavar="G", help="of classifier-free guidance")
    how.add_argument("--form", choices=FORMS, help="what the editing prompts say: the new caption; the new thing; the "
                     "new thing, less the old one; the new caption, less the old one")  # fmt: skip
    how.add_argument("--alpha", type=float, metavar="A", help="of the editing prompts")
    how.add_argument("--tau", type=float, metavar="T", help="share of the steps without editing prompts")
    how.add_argument(
        "--regularize", action=argparse.BooleanOptionalAction, default=None,
        help="keep the predicted noise like noise while inverting",
    )  # fmt: skip
    how.add_argument("--jump-length", type=int, metavar="N", help="steps that a jump of RePaint goes back")
    how.add_argument("--jump-count", type=int, metavar="N", help="how often RePaint denoises each stretch")
    how.add_argument("--hole", type=int, default=36, metavar="PIXELS", help="side of the hole (default: 36)")

    update = p.add_argument_group("energy-based context update of ebcu")
    for flag, what in (("gamma", "the main prompt"), ("edit-gamma", "the editing prompts")):
        for term in ("attn", "norm"):
            found = [getattr(u, f"{flag}_{term}".replace("-", "_")) for u in UPDATES.values()]
            update.add_argument(
                f"--{flag}-{term}", type=float, metavar="G",
                help=f"step size of the {'attention' if term == 'attn' else 'norm'} term for {what} "
                f"(default: {min(found):g}" + (f" to {max(found):g}, by task)" if max(found) > min(found) else ")"),
            )  # fmt: skip
    update.add_argument(
        "--reset-edits", action=argparse.BooleanOptionalAction, default=None,
        help="start every step from the embeddings of the editing prompts; else their updates add up over the steps",
    )  # fmt: skip
    options.add_machine(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    return console.run(PROGRAM, lambda: _run(args), interrupted="interrupted; nothing was written")


def _run(args: argparse.Namespace) -> int:
    settings = Settings(
        split=args.split,
        kinds=tuple(kind for kind in KINDS if task_of(kind) in args.task),
        count=args.count,
        seed=args.seed,
        hole=args.hole,
        batch=args.batch_size,
    )
    sweep = args.sweep is not None
    if sweep and args.split != SPLITS[0]:
        raise ParameterError(f"--sweep chooses settings, which is for --split {SPLITS[0]}")

    def variants(kind: str) -> tuple[Variant, ...]:
        recipe, update = _replaced(RECIPES[kind], args), _replaced(UPDATES[kind], args)
        if sweep:
            return candidates(kind, recipe, args.sweep or SWEEPS)
        return Variant(BASE, recipe), Variant(EBCU, recipe, update)

    console.check_folders(args.json, args.grid)
    with (
        console.PrepareProgress() as prepare,
        console.ProgressLine() as line,
        options.open_engine(args, prepare) as engine,
    ):
        tasks = measure(
            engine,
            variants,
            settings,
            keep_pictures=args.grid_rows if args.grid else 0,
            on_pictures=lambda done, total, name: line.update(f"{name}: {done} of {total} pictures", done, total),
        )
    print_report(tasks, Console(width=None if sys.stdout.isatty() else 180))
    if args.json:
        console.write_json(args.json, to_json(tasks))
    if args.grid:
        save_grid(tasks, args.grid)
    return 0


def _replaced(setting: _Setting, args: argparse.Namespace) -> _Setting:
    """A recipe or an update with what the command line gives."""
    given = {name: value for name, value in vars(args).items() if value is not None and hasattr(setting, name)}
    return replace(setting, **given)
