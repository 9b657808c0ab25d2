"""ebca-bench ane: the benchmark of Attend-and-Excite, with several methods."""

import argparse
import math
from collections.abc import Sequence

from ebca import console
from ebca.bench import options
from ebca.bench.alignment.methods import BASE, Method, add_methods, add_settings, methods
from ebca.bench.ane.prompts import SUBSETS, chosen, own, read
from ebca.bench.ane.scores import Judge
from ebca.bench.judges.captioner import Captioner
from ebca.bench.judges.clip import Clip
from ebca.bench.judges.loading import check_packages
from ebca.errors import ParameterError
from ebca.runtime.cli.options import add_machine

PROGRAM = "ebca-bench ane"
CLIP = "openai/clip-vit-base-patch16"
CAPTIONER = "Salesforce/blip-image-captioning-base"

_DESCRIPTION = """\
Make images of prompts that name two things, such as "a cat and a dog", with several methods: base (gammas of 0, no
subjects), ebcu (the context update with the given gammas), exclusive (both things are subjects), and both. Score them
as Attend-and-Excite does: similarity of image and prompt, of image and the worse half of the prompt (CLIP), and of a
caption and the prompt (BLIP, then CLIP).
"""

_EXAMPLES = """examples:
  ebca-bench ane --engine engine-sd15 --estimate --seconds-per-image 0.42
  ebca-bench ane --engine engine-sd15 --methods base exclusive --output ane-sd15 --json ane.json --grid ane.png
  ebca-bench ane --engine engine-sd15 --prompts a.e_prompts.json --subset animals --seeds 8 --output ane-animals

The same command continues an interrupted run; more methods, prompts and seeds can be added to the same --output.
"""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = options.command_line(PROGRAM, _DESCRIPTION, _EXAMPLES)
    options.add_engine(p)
    add_methods(p, (BASE, "exclusive"))
    p.add_argument("--prompts", type=console.path, metavar="FILE.json",
                   help=f"an object of lists named {', '.join(SUBSETS)}, as the authors published it (default: a list "
                   "of our own with the same structure)")  # fmt: skip
    p.add_argument("--subset", nargs="+", choices=SUBSETS, metavar="NAME",
                   help=f"which prompts: {', '.join(SUBSETS)} (default: all)")  # fmt: skip
    p.add_argument("--limit", type=int, metavar="N", help="only the first N prompts of each subset")
    p.add_argument("--seeds", type=int, default=64, metavar="N",
                   help="images of each prompt and method (default: 64)")  # fmt: skip
    p.add_argument("--seed", type=int, default=0, metavar="N",
                   help="seed of the first image of a prompt; the next has N + 1 (default: 0)")  # fmt: skip
    p.add_argument("--steps", type=int, default=50, metavar="N", help="scheduler steps (default: 50)")
    p.add_argument("--guidance-scale", type=float, metavar="G", help="default: the engine's")
    p.add_argument("--scheduler", metavar="NAME", help="default: the engine's")
    options.add_batch_size(p, 8)
    p.add_argument("--output", type=console.path, metavar="DIR",
                   help="keep images, scores and settings in this folder, and continue from it")  # fmt: skip
    p.add_argument("--no-images", action="store_true", help="keep scores only")
    options.add_json(p, "means, differences and the means of every prompt")
    options.add_grid(p, "all methods side by side, with the first seed", "prompts")
    _add_judges(p)
    time = p.add_argument_group("time")
    time.add_argument("--estimate", action="store_true", help="only say how many images and how much time are left")
    time.add_argument("--seconds-per-image", type=float, metavar="S",
                      help="for the estimate (default: the time of the first images is measured)")  # fmt: skip
    add_settings(p, "the words for the two things")
    add_machine(p)
    return p


def _add_judges(p: argparse.ArgumentParser) -> None:
    judges = p.add_argument_group("judges", "Folders, or models on the hub.")
    judges.add_argument("--clip", default=CLIP, metavar="MODEL", help=f"a CLIP model (default: {CLIP})")
    judges.add_argument("--captioner", default=CAPTIONER, metavar="MODEL",
                        help=f"a BLIP captioner (default: {CAPTIONER})")  # fmt: skip
    judges.add_argument("--judge-device", metavar="DEVICE",
                        help="where PyTorch runs both (default: the engine's device)")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    ended = "interrupted; with --output, the same command continues"
    return console.run(PROGRAM, lambda: _run(parser().parse_args(argv)), interrupted=ended)


def _run(args: argparse.Namespace) -> int:
    _check(args)
    # These need scipy, which `_check` has found.
    from ebca.bench.ane import measure as bench
    from ebca.bench.ane.folder import Folder
    from ebca.bench.ane.report import print_report, save_grid

    compared = methods(args)
    settings = bench.Settings(
        args.seeds, args.seed, args.steps, args.guidance_scale, args.scheduler, args.batch_size
    )  # fmt: skip
    prompts = chosen(own() if args.prompts is None else read(args.prompts), args.subset, args.limit)
    options.check_results(args)
    folder = Folder(args.output, not args.no_images)
    left = bench.missing(folder, compared, prompts, settings)
    if args.estimate and (args.seconds_per_image is not None or not left):
        print(_estimate(left, args.seconds_per_image or 0.0))
        return 0
    with options.opened_engine(args) as (engine, line):
        judge = _judge(args, engine.device.name)
        if not args.estimate:
            facts = bench.shared_facts(engine, settings, args.clip, args.captioner)
            folder.guard(facts, {method.name: method.to_json() for method in compared})
            if left:
                judge.load()
        if left:
            seconds = args.seconds_per_image
            if seconds is None:
                seconds = bench.seconds_per_image(engine, _slowest(compared), prompts, settings)
            print(_estimate(left, seconds), flush=True)
        if args.estimate:
            return 0
        scores = bench.measure(
            engine, judge, folder, compared, prompts, settings,
            lambda done, total, what: line.update(f"{what}: {done} of {total} images", done, total),
        )  # fmt: skip
    print_report(scores, options.output(150))
    if args.json is not None:
        console.write_json(args.json, bench.to_json(scores, {"clip": args.clip, "captioner": args.captioner}))
    if args.grid is not None:
        save_grid(scores, folder, args.grid_rows, args.grid)
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be said before anything is loaded."""
    check_packages("ebca-bench ane", ("torch", "transformers", "scipy"))
    if args.grid is not None and (args.no_images or args.output is None):
        raise ParameterError("--grid shows images, which are not kept", "give --output, and no --no-images")
    seconds = args.seconds_per_image
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise ParameterError(f"--seconds-per-image is {seconds:g}", "give a positive number of seconds")


def _judge(args: argparse.Namespace, device: str) -> Judge:
    where = args.judge_device or device
    return Judge(lambda: Clip.load(args.clip, where), lambda: Captioner.load(args.captioner, where).captions)


def _slowest(compared: Sequence[Method]) -> Method:
    """The method whose time stands for all, so that the estimate is not too low: the last does the most."""
    return compared[-1]


def _estimate(images: int, seconds: float) -> str:
    """Such as "1,234 images at 0.42 s: about 8.6 minutes, and the time of the judges"."""
    if not images:
        return "0 images are left"
    total = images * seconds
    unit, size = next((u, s) for u, s in (("hours", 3600), ("minutes", 60), ("seconds", 1)) if total >= s or s == 1)
    return f"{images:,} images at {seconds:.3g} s: about {total / size:.1f} {unit}, and the time of the judges"
