"""ebca-bench alignment: do pictures show what the prompt says, with and without the context update."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ebca import console
from ebca.bench.alignment.effects import effects
from ebca.bench.alignment.measure import BASE, Method, Settings, measure, to_json
from ebca.bench.alignment.prompts import KINDS, SPLITS
from ebca.bench.alignment.report import effects_json, print_effects, print_report, save_grid
from ebca.runtime.cli import options

PROGRAM = "ebca-bench alignment"

_EXAMPLES = """examples:
  ebca-bench alignment --engine shapes
  ebca-bench alignment --engine shapes --split development --kinds two three --gamma-attn 0.02 --count 200
  ebca-bench alignment --engine shapes --count 500 --json alignment.json --grid alignment.png

Choose settings on the development prompts; use the held-out ones once.
"""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = argparse.ArgumentParser(
        PROGRAM,
        description="Make pictures of coloured shapes with gammas 0 (base) and with the given ones (ebcu), from the\n"
        "same prompts and seeds; read the shapes back from the pictures by image processing; compare.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--engine", default="shapes", metavar="DIR", help="engine directory or bundled name (default: shapes)"
    )
    p.add_argument("--split", choices=SPLITS, default="held-out", help="which half of the prompts (default: held-out)")
    p.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND",
        help=f"of prompts: {', '.join(KINDS)} (default: all). 'unseen' has a pair of colour and shape that training "
        "never showed together",
    )  # fmt: skip
    p.add_argument("--count", type=int, default=100, metavar="N", help="pictures a kind and method (default: 100)")
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the first picture; the next has N + 1 (default: 0)"
    )
    p.add_argument("--steps", type=int, default=25, help="scheduler steps (default: 25)")
    p.add_argument("--guidance-scale", type=float, metavar="G", help="default: the engine's")
    p.add_argument("--scheduler", default="ddim", help="default: ddim")
    p.add_argument("--batch-size", type=int, default=16, metavar="N", help="pictures at once (default: 16)")
    p.add_argument(
        "--effects", action="store_true",
        help="also show how far the update moves the contexts, and the energies by layer, over one batch of each kind",
    )  # fmt: skip
    p.add_argument("--json", metavar="FILE", help="also write shares, differences and every reading there")
    p.add_argument(
        "--grid", type=Path, metavar="FILE.png", help="also write a sheet of pictures, base and ebcu side by side"
    )
    p.add_argument(
        "--grid-rows", type=int, default=4, metavar="N", help="prompts of each kind in the sheet (default: 4)"
    )
    energy = options.add_energy(p)
    energy.set_defaults(gamma_norm=[0.003])
    energy.add_argument(
        "--thing-upweight", type=float, default=1.0, metavar="W",
        help="factor of the attention step on the words for colours and shapes (default: 1)",
    )  # fmt: skip
    options.add_machine(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    return console.run(PROGRAM, lambda: _run(args), interrupted="interrupted; nothing was written")


def _run(args: argparse.Namespace) -> int:
    gamma_attn, gamma_norm = options.gammas(args)
    methods = (Method(BASE), Method("ebcu", gamma_attn, gamma_norm, args.norm_factor, args.thing_upweight))
    settings = Settings(
        split=args.split,
        kinds=tuple(args.kinds),
        count=args.count,
        seed=args.seed,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        scheduler=args.scheduler,
        batch=args.batch_size,
    )
    console.check_folders(args.json, args.grid)
    with (
        console.PrepareProgress() as prepare,
        console.ProgressLine() as line,
        options.open_engine(args, prepare) as engine,
    ):
        alignment = measure(
            engine,
            methods,
            settings,
            keep_pictures=args.grid_rows if args.grid else 0,
            on_pictures=lambda done, total, name: line.update(f"{name}: {done} of {total} pictures", done, total),
        )
        inside = effects(engine, methods, settings) if args.effects else None
    out = Console(width=None if sys.stdout.isatty() else 140)
    print_report(alignment, out)
    if inside:
        print_effects(inside, out)
    if args.json:
        console.write_json(args.json, to_json(alignment) | ({"effects": effects_json(inside)} if inside else {}))
    if args.grid:
        save_grid(alignment, args.grid)
    return 0
