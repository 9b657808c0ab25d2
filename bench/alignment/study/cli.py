"""python -m ebca.bench.alignment.study: search, test, rivals and ceiling in one run."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace

from ebca import console
from ebca.bench import options
from ebca.bench.alignment.rivals.cells import petaflop
from ebca.bench.alignment.rivals.methods import EXCLUSIVE, Settings, guide
from ebca.bench.alignment.rivals.options import add_runner, opened_runner
from ebca.bench.alignment.study.parts import Study
from ebca.bench.alignment.study.plan import PARTS, Plan
from ebca.errors import ParameterError
from ebca.result_files import check_writable

PROGRAM = "ebca.bench.alignment.study"

_DESCRIPTION = """\
Study exclusive attention with a model of examples/shapes, most important parts first:
  development  settings of exclusive attention on development prompts
  held-out     one test of the chosen settings: five kinds, two schedulers, two guidance scales
  rivals       settings of the other methods, then a test of each, and seconds per image
  ceiling      what is possible if every thing is told its place
Each part writes a JSON file as soon as it is done. What is done is kept in OUTPUT/progress.jsonl, and the same command
continues after an interruption.
"""

_EXAMPLES = """examples:
  python -m ebca.bench.alignment.study --device cuda --output study --limit 240
  python -m ebca.bench.alignment.study --output small --count 8 --parts development held-out
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = options.command_line(PROGRAM, _DESCRIPTION, _EXAMPLES)
    p.add_argument("--output", type=console.path, required=True, metavar="DIR", help="folder for the results")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                   help=f"{', '.join(PARTS)} (default: all)")  # fmt: skip
    p.add_argument("--count", type=int, metavar="N", help="images of each cell (default: 192, 512 and 96)")
    p.add_argument("--exclusive", type=_settings, metavar="JSON",
                   help="settings of exclusive attention (default: the best on development prompts)")  # fmt: skip
    p.add_argument("--estimate", action="store_true", help="only say how much there is to compute")
    add_runner(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    ended = "interrupted; the same command continues"
    return console.run(PROGRAM, lambda: _run(parser().parse_args(argv)), interrupted=ended)


def plan_of(count: int | None) -> Plan:
    """The plan of the study, with `count` images of each cell instead of its own numbers."""
    if count is None:
        return Plan()
    if count < 1:
        raise ParameterError(f"--count is {count}", "give 1 or more")
    numbers = {"search_count": count, "held_out_count": count, "rival_search_count": count}
    return replace(Plan(), **numbers, timed_images=(1, min(64, count)), rounds=1)  # type: ignore[arg-type]


def _run(args: argparse.Namespace) -> int:
    plan = plan_of(args.count)
    cells = plan.everything()
    work = petaflop(cells)
    print(f"{len(cells)} cells, about {work:.2f} PFLOP: {work * 1000 / 20:.0f} s at 20 TFLOP/s", flush=True)
    if args.estimate:
        return 0
    check_writable(args.output / "progress.jsonl", "the results")
    with opened_runner(args, args.output / "progress.jsonl") as runner:
        complete = Study(runner, plan, args.output, args.exclusive).run(args.parts)
    if not complete:
        print("the time is over; the same command continues")
    return 0


def _settings(text: str) -> Settings:
    try:
        found = json.loads(text)
        guide(EXCLUSIVE, found)
    except (ValueError, TypeError, ParameterError) as error:
        raise argparse.ArgumentTypeError(f"not settings of exclusive attention: {error}") from None
    return dict(found)
