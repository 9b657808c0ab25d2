"""ebca-bench edit: are real images edited as asked, and is everything else kept?"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ebca import console
from ebca.bench import options
from ebca.bench.alignment.journal import Journal
from ebca.bench.edit.cases import Case, check_files, make_case, read_cases
from ebca.bench.edit.detecting import Detection, with_masks
from ebca.bench.edit.judging import Judge, clip_judge, dino_judge, judge, lpips_judge, missing
from ebca.bench.edit.making import Edits, Item, guard
from ebca.bench.edit.recipes import DEFAULT_RECIPE, METHODS, RECIPES, SWAP, Settings, evaluations
from ebca.bench.edit.report import Result, print_report, save_grid, to_json
from ebca.bench.judges import lpips
from ebca.bench.judges.clip import Clip
from ebca.bench.judges.dino import Dino
from ebca.bench.judges.segmenter import Segmenter
from ebca.errors import ParameterError
from ebca.runtime.cli.options import add_machine
from ebca.runtime.engine import Engine

PROGRAM = "ebca-bench edit"
CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dino-vitb8"
SEGMENTER = "CIDAS/clipseg-rd64-refined"
# Milliseconds on one H200: an evaluation of two rows at 512 x 512, as docs/gpu.md says.
_MILLISECONDS = 7.2

_DESCRIPTION = """\
Edit real images by DDIM inversion with several methods: swap (generated with the target text), ebcq (the source text
and editing prompts) and ebcq-update (the contexts of the editing prompts are updated). Judge them as pix2pix-zero
does: CLIP accuracy, LPIPS of the background, and the structure distance of a DINO ViT.
"""

_EXAMPLES = """examples:
  ebca-bench edit --engine engine-sd15 --cases cases.json --output edits --json edits.json --grid edits.png
  ebca-bench edit --engine engine-sd15 --images cats --source "a cat" --target "a dog" --masks masks --output edits
  ebca-bench edit --engine engine-sd15 --cases cases.json --output edits --estimate

The same command continues an interrupted run. Edited images are in OUTPUT/images.
"""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = options.command_line(PROGRAM, _DESCRIPTION, _EXAMPLES)
    options.add_engine(p)
    what = p.add_argument_group("cases")
    what.add_argument("--cases", type=console.path, metavar="FILE.json",
                      help="a list of objects: name, images (folder), source, target; optional: masks (folder), "
                      "recipe, add, remove, object")  # fmt: skip
    what.add_argument("--images", type=console.path, metavar="DIR", help="a folder of images, instead of --cases")
    what.add_argument("--source", metavar="TEXT", help="what they show")
    what.add_argument("--target", metavar="TEXT", help="what they should show")
    what.add_argument("--masks", type=console.path, metavar="DIR", help="masks of the same names, white in the object")
    what.add_argument("--object", metavar="TEXT", help="what --segmenter looks for (default: the source, no article)")
    what.add_argument("--count", type=int, metavar="N", help="only the first N images of each case")
    p.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
                   help=f"{', '.join(METHODS)} (default: all); all are compared with swap")  # fmt: skip
    _add_recipe(p)
    judges = p.add_argument_group("judges")
    judges.add_argument("--clip", default=CLIP, metavar="MODEL", help=f"folder or name on the hub (default: {CLIP})")
    judges.add_argument("--dino", default=DINO, metavar="MODEL", help=f"folder or name on the hub (default: {DINO})")
    judges.add_argument("--lpips-net", choices=lpips.NETS, default=lpips.NETS[0],
                        help=f"net of LPIPS, if lpips is installed (default: {lpips.NETS[0]})")  # fmt: skip
    judges.add_argument("--segmenter", nargs="?", const=SEGMENTER, metavar="MODEL",
                        help="find the object in images without masks, for LPIPS of the background: a CLIPSeg model "
                        f"(without a value: {SEGMENTER})")  # fmt: skip
    judges.add_argument("--threshold", type=float, default=0.5, metavar="P",
                        help="probability from which on a pixel belongs to the object (default: 0.5)")  # fmt: skip
    judges.add_argument("--judge-device", metavar="DEVICE",
                        help="as PyTorch names it (default: where the engine is)")  # fmt: skip
    options.add_batch_size(p, 1)
    p.add_argument("--output", type=console.path, required=True, metavar="DIR",
                   help="folder of edited images and of what is done; continued if it exists")  # fmt: skip
    p.add_argument("--estimate", action="store_true", help="only say how much there is to compute")
    options.add_json(p, "means, differences and every value")
    options.add_grid(p, "before, and every method", "images")
    add_machine(p)
    return p


def _add_recipe(p: argparse.ArgumentParser) -> None:
    how = p.add_argument_group(
        "recipe", "The editing prompts: the added one, then the one that is taken away. One value is for both."
    )
    how.add_argument("--recipe", choices=RECIPES, default=DEFAULT_RECIPE,
                     help="the authors' settings, by what they edit; for cases that name none "
                     f"(default: {DEFAULT_RECIPE})")  # fmt: skip
    for flag, text in (
        ("alpha", "weights"),
        ("alpha-tau", "shares of the steps without editing prompts"),
        ("gamma-attn-compose", "step sizes of the attention term"),
        ("gamma-norm-compose", "step sizes of the norm term"),
        ("gamma-tau", "shares of the steps without updates"),
    ):
        how.add_argument(f"--{flag}", type=float, nargs="+", metavar="V", help=f"{text} (default: the recipe's)")
    how.add_argument("--steps", type=int, default=50, metavar="N", help="scheduler steps (default: 50)")
    how.add_argument("--guidance-scale", type=float, metavar="G", help="default: the engine's")
    how.add_argument("--regularize", action=argparse.BooleanOptionalAction, default=True,
                     help="regularize the predicted noise in the inversions of ebcq; that of swap is plain "
                     "(default: yes)")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    ended = "interrupted; the same command continues"
    return console.run(PROGRAM, lambda: _run(parser().parse_args(argv)), interrupted=ended)


def _run(args: argparse.Namespace) -> int:
    settings = Settings(args.steps, args.guidance_scale, args.regularize)
    if args.batch_size < 1:
        raise ParameterError(f"--batch-size is {args.batch_size}", "give 1 or more")
    if not 0 < args.threshold < 1:
        raise ParameterError(f"--threshold is {args.threshold:g}", "give a number between 0 and 1")
    cases = _cases(args)
    # swap comes first: the others are compared with it.
    methods = [method for method in METHODS if method in args.methods or method == SWAP]
    if args.estimate:
        _estimate(sum(len(case.images) for case in cases), methods, settings.steps)
        return 0
    if not lpips.available():
        console.notice(f"LPIPS is left out because the package lpips is not installed; {lpips.INSTALL}")
    with options.opened_engine(args) as (engine, line):
        # Missing judges must not be noticed after hours of edits.
        judges, detection = _judges(args, engine), _detection(args, engine, cases)
        with engine.session() as session:
            size = (session.width, session.height)
        for case in cases:
            check_files(case)
        guard(args.output, engine, cases, settings)
        journal = Journal(args.output / "journal.jsonl")
        if detection is not None:
            line.update("looking for the objects", 0, 1)
            cases = with_masks(cases, detection, args.output, journal, size, max(args.batch_size, 8))
        items = [Item(case, index, method) for case in cases for index in range(len(case.images)) for method in methods]
        edits = Edits(args.output, journal)
        progress = _Progress(line, items, edits, judges, journal)
        edits.make(engine, items, settings, args.batch_size, size, progress)
        values = judge(items, edits, judges, journal, size, max(args.batch_size, 8), progress)
    results = _results(cases, methods, items, values)
    print_report(results, options.output(170))
    if args.json is not None:
        described: dict[str, Any] = asdict(settings) | {"clip": args.clip, "dino": args.dino}
        described |= {"lpips": args.lpips_net if lpips.available() else None, "size": size}
        console.write_json(args.json, to_json(results, described))
    if args.grid is not None:
        save_grid(results, edits, size, args.grid_rows, args.grid)
    return 0


class _Progress:
    """Counts edits and scores on one line."""

    def __init__(
        self,
        line: console.ProgressLine,
        items: Sequence[Item],
        edits: Edits,
        judges: Sequence[Judge],
        journal: Journal,
    ) -> None:
        self._line, self._done = line, 0
        self._total = sum(edits.record(item) is None for item in items) + missing(items, edits, judges, journal)

    def __call__(self, what: str, count: int) -> None:
        self._done += count
        self._line.update(f"{what}: {self._done} of {self._total} edits and scores", self._done, self._total)


def _cases(args: argparse.Namespace) -> list[Case]:
    single = {"images": args.images, "source": args.source, "target": args.target}
    optional = {"masks": args.masks, "object": args.object}
    given = [name for name, value in (single | optional).items() if value is not None]
    if args.object is not None and args.segmenter is None:
        raise ParameterError("--object says what --segmenter looks for, which is missing", "give --segmenter too")
    if args.count is not None and args.count < 1:
        raise ParameterError(f"--count is {args.count}", "give 1 or more")
    if args.cases is not None:
        if given:
            raise ParameterError(f"--cases and --{given[0]} exclude each other", "give one of them")
        entries = read_cases(args.cases)
    else:
        lacking = [name for name, value in single.items() if not value]
        if lacking:
            raise ParameterError(f"--{lacking[0]} is missing", "give --cases, or --images, --source and --target")
        entries = [{"name": args.images.resolve().name or "images", **single, **optional}]
    cases = [make_case(entry, args.recipe, args.count) for entry in entries]
    return [replace(case, recipe=case.recipe.replaced(
        alpha=args.alpha,
        tau=args.alpha_tau,
        gamma_attn=args.gamma_attn_compose,
        gamma_norm=args.gamma_norm_compose,
        gamma_tau=args.gamma_tau,
    )) for case in cases]  # fmt: skip


def _judges(args: argparse.Namespace, engine: Engine) -> list[Judge]:
    device = args.judge_device or engine.device.name
    judges = [
        clip_judge(Clip.load(args.clip, device), args.clip),
        dino_judge(Dino.load(args.dino, device), args.dino),
    ]
    if lpips.available():
        judges.insert(1, lpips_judge(lpips.Lpips.load(args.lpips_net, device), args.lpips_net))
    return judges


def _detection(args: argparse.Namespace, engine: Engine, cases: Sequence[Case]) -> Detection | None:
    """How objects are found, or None if nothing asks for them: masks serve LPIPS only."""
    if args.segmenter is None or not lpips.available() or all(case.masks is not None for case in cases):
        return None
    segmenter = Segmenter.load(args.segmenter, args.judge_device or engine.device.name)
    return Detection(args.segmenter, segmenter.probabilities, args.threshold)


def _results(
    cases: Sequence[Case], methods: Sequence[str], items: Sequence[Item], values: Sequence[dict[str, Any]]
) -> list[Result]:
    by_case: dict[str, dict[str, list[dict[str, Any]]]] = {case.name: {m: [] for m in methods} for case in cases}
    for item, value in zip(items, values, strict=True):
        by_case[item.case.name][item.method].append(value)
    return [Result(case, by_case[case.name]) for case in cases]


def _estimate(images: int, methods: Sequence[str], steps: int) -> None:
    inversions, generations = evaluations(methods, steps)
    # One row is taken as half of two: that is what large images cost.
    seconds = images * (generations + inversions / 2) * _MILLISECONDS / 1000
    print(
        f"{images} images, {len(methods)} methods: {images * inversions} evaluations of one row (inversions) and "
        f"{images * generations} of two rows (generations with guidance)"
    )
    print(
        f"about {seconds / 60:.0f} min if an evaluation of two rows takes {_MILLISECONDS} ms (SD 1.5 size, 512 x 512, "
        "float16, one H200, without editing prompts); editing prompts, VAE and judges come on top"
    )
