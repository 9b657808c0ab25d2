"""ebca-bench tasks: do edits and inpainting come out as asked, with and without the context update."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from ebca import console
from ebca.bench import options
from ebca.bench.alignment.prompts import SPLITS
from ebca.bench.tasks.cases import KINDS, TASKS, task_of
from ebca.bench.tasks.measure import Settings, measure, to_json
from ebca.bench.tasks.recipes import BASE, EBCU, FORMS, RECIPES, SWEEPS, UPDATES, Recipe, Update, Variant, candidates
from ebca.bench.tasks.report import print_report, save_grid
from ebca.errors import ParameterError
from ebca.runtime.cli.options import add_machine

PROGRAM = "ebca-bench tasks"

_Setting = TypeVar("_Setting", Recipe, Update)

_DESCRIPTION = """\
Change one thing in generated images (edit) and in drawn images (real), and fill holes in drawn images (inpaint), with
gammas of 0 (base) and with others (ebcu). Read from the images whether that thing changed and everything else stayed,
and compare. Settings that are not given are the best ones found on development cases.
"""

_EXAMPLES = """examples:
  ebca-bench tasks --engine shapes --json tasks.json --grid tasks.png
  ebca-bench tasks --engine shapes --task inpaint --count 20
  ebca-bench tasks --engine shapes --split development --sweep --task real --count 40
  ebca-bench tasks --engine shapes --split development --task edit --form swap --alpha 1 --tau 0.2

Choose settings on the development cases, and use the held-out cases once.
"""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = options.command_line(PROGRAM, _DESCRIPTION, _EXAMPLES)
    options.add_engine(p, default="shapes")
    options.add_cases(p, SPLITS, "case", "cases of each kind")
    p.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="which tasks (default: all)")
    options.add_batch_size(p, 20)
    p.add_argument(
        "--sweep",
        nargs="*",
        choices=SWEEPS,
        metavar="WHAT",
        help=f"try a table of settings instead, each against the one in use: {' or '.join(SWEEPS)} (default: both)",
    )
    options.add_json(p, "rates, differences and every score")
    options.add_grid(p, "before, mask, and after", "cases")
    _add_recipe(p)
    _add_update(p)
    add_machine(p)
    return p


def _add_recipe(p: argparse.ArgumentParser) -> None:
    how = p.add_argument_group("recipe", "A value given here replaces the one in use.")
    how.add_argument("--steps", type=int, help="scheduler steps")
    how.add_argument("--guidance-scale", type=float, metavar="G", help="of classifier-free guidance")
    how.add_argument(
        "--form",
        choices=FORMS,
        help="what the editing prompts say: the new caption; the new thing; the new thing minus the old one; the new "
        "caption minus the old one",
    )
    how.add_argument("--alpha", type=float, metavar="A", help="of the editing prompts")
    how.add_argument("--tau", type=float, metavar="T", help="share of the steps without editing prompts")
    how.add_argument(
        "--regularize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="regularize the predicted noise during inversion",
    )
    how.add_argument("--jump-length", type=int, metavar="N", help="steps that a jump of RePaint goes back")
    how.add_argument("--jump-count", type=int, metavar="N", help="how often RePaint denoises each stretch")
    how.add_argument("--hole", type=int, default=36, metavar="PIXELS", help="side of the hole (default: 36)")


def _add_update(p: argparse.ArgumentParser) -> None:
    update = p.add_argument_group("energy-based context update of ebcu")
    for flag, what in (("gamma", "the main prompt"), ("edit-gamma", "the editing prompts")):
        for term, name in (("attn", "attention"), ("norm", "norm")):
            found = [getattr(u, f"{flag}_{term}".replace("-", "_")) for u in UPDATES.values()]
            default = f"{min(found):g}" + (f" to {max(found):g}, by task" if max(found) > min(found) else "")
            update.add_argument(
                f"--{flag}-{term}",
                type=float,
                metavar="G",
                help=f"step size of the {name} term for {what} (default: {default})",
            )
    update.add_argument(
        "--reset-edits",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="start every step from the embeddings of the editing prompts, so that updates do not accumulate",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return console.run(PROGRAM, lambda: _run(parser().parse_args(argv)), interrupted=options.INTERRUPTED)


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
        raise ParameterError(f"--sweep chooses settings, which needs --split {SPLITS[0]}")

    def variants(kind: str) -> tuple[Variant, ...]:
        recipe, update = _replaced(RECIPES[kind], args), _replaced(UPDATES[kind], args)
        if sweep:
            return candidates(kind, recipe, args.sweep or SWEEPS)
        return Variant(BASE, recipe), Variant(EBCU, recipe, update)

    with options.opened_engine(args) as (engine, line):
        tasks = measure(
            engine,
            variants,
            settings,
            keep_images=args.grid_rows if args.grid is not None else 0,
            on_images=lambda done, total, name: line.update(f"{name}: {done} of {total} images", done, total),
        )
    print_report(tasks, options.output(180))
    if args.json is not None:
        console.write_json(args.json, to_json(tasks))
    if args.grid is not None:
        save_grid(tasks, args.grid)
    return 0


def _replaced(setting: _Setting, args: argparse.Namespace) -> _Setting:
    """A recipe or an update with the values given on the command line."""
    given = {name: value for name, value in vars(args).items() if value is not None and hasattr(setting, name)}
    return replace(setting, **given)
