"""ebca-bench alignment: do images show what the prompt asks for, with and without the context update."""

import argparse
from collections.abc import Sequence

from ebca import console
from ebca.bench import options
from ebca.bench.alignment.effects import effects
from ebca.bench.alignment.measure import BASE, Method, Settings, measure, to_json
from ebca.bench.alignment.prompts import KINDS, SPLITS
from ebca.bench.alignment.report import effects_json, print_effects, print_report, save_grid
from ebca.runtime.cli.options import add_energy, add_machine, gammas

PROGRAM = "ebca-bench alignment"

_DESCRIPTION = """\
Make images of coloured shapes from the same prompts and seeds, with gammas of 0 (base) and with the given ones (ebcu).
Read the shapes back from the images by classical image processing, and compare.
"""

_EXAMPLES = """examples:
  ebca-bench alignment --engine shapes
  ebca-bench alignment --engine shapes --split development --kinds two three --gamma-attn 0.02 --count 200
  ebca-bench alignment --engine shapes --count 500 --json alignment.json --grid alignment.png

Choose settings on the development prompts, and use the held-out prompts once.
"""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = options.command_line(PROGRAM, _DESCRIPTION, _EXAMPLES)
    options.add_engine(p, default="shapes")
    options.add_cases(p, SPLITS, "image", "images of each kind and method")
    p.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        metavar="KIND",
        help=f"kinds of prompts: {', '.join(KINDS)} (default: all). 'unseen' has a pair of colour and shape that never "
        "occurred together in training",
    )
    p.add_argument("--steps", type=int, default=25, help="scheduler steps (default: 25)")
    p.add_argument("--guidance-scale", type=float, metavar="G", help="default: the engine's")
    p.add_argument("--scheduler", default="ddim", help="default: ddim")
    options.add_batch_size(p, 16)
    p.add_argument(
        "--effects",
        action="store_true",
        help="also show how far the update moves the contexts, and the energies of each layer, for one batch per kind",
    )
    options.add_json(p, "rates, differences and every reading")
    options.add_grid(p, "base and ebcu side by side", "prompts")
    energy = add_energy(p)
    energy.set_defaults(gamma_norm=[0.003])
    energy.add_argument(
        "--thing-upweight",
        type=float,
        default=1.0,
        metavar="W",
        help="factor of the attention step on the words for colours and shapes (default: 1)",
    )
    add_machine(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return console.run(PROGRAM, lambda: _run(parser().parse_args(argv)), interrupted=options.INTERRUPTED)


def _run(args: argparse.Namespace) -> int:
    gamma_attn, gamma_norm = gammas(args)
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
    with options.opened_engine(args) as (engine, line):
        alignment = measure(
            engine,
            methods,
            settings,
            keep_images=args.grid_rows if args.grid is not None else 0,
            on_images=lambda done, total, name: line.update(f"{name}: {done} of {total} images", done, total),
        )
        inside = effects(engine, methods, settings) if args.effects else None
    out = options.output(140)
    print_report(alignment, out)
    if inside:
        print_effects(inside, out)
    if args.json is not None:
        console.write_json(args.json, to_json(alignment) | ({"effects": effects_json(inside)} if inside else {}))
    if args.grid is not None:
        save_grid(alignment, args.grid)
    return 0
