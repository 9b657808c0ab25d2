"""ebca-run: images from an engine directory."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ebca import console
from ebca.runtime.cli import options
from ebca.runtime.cli.run_files import check_files, printable, write_files
from ebca.runtime.cli.run_parser import PROGRAM, parser
from ebca.runtime.cli.run_repeat import check_replaced, filled, repeated
from ebca.runtime.cli.run_request import given_files, image_count, request
from ebca.runtime.components import Components
from ebca.runtime.conditioning import edits as editing
from ebca.runtime.engine import warn_of_differences
from ebca.runtime.images import inputs
from ebca.runtime.request.fields import GenerateRequest
from ebca.runtime.sampling.progress import StepInfo
from ebca.runtime.session import Session


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    p = parser()
    args = p.parse_args(argv)
    if args.from_image is None:
        prompt = args.source_prompt if args.prompt is None else args.prompt
        required = {"--engine": args.engine, "--prompt": prompt}
        if missing := [flag for flag, value in required.items() if value is None]:
            p.error(f"the following arguments are required: {', '.join(missing)}")
    with console.CtrlC() as ctrl_c:
        return console.run(
            PROGRAM, lambda: _run(filled(p, args, argv), ctrl_c), interrupted="interrupted; no image was written"
        )


def _run(args: argparse.Namespace, ctrl_c: console.CtrlC) -> int:
    count = image_count(args)
    check_files(args, count)
    check_replaced(args, count)
    asked = request(args)
    if args.recorded is not None:
        asked = repeated(asked, args)
    made_from = given_files(args)
    given_size = inputs.image_size(args.image) if args.image else None
    with console.PrepareProgress() as prepare:
        engine = options.open_engine(args, None if args.quiet else prepare, quiet=args.quiet)
    if args.recorded is not None:
        warn_of_differences(args.from_image, args.recorded, engine)
    height, width = _size(args, engine, given_size)
    with engine, engine.session(height, width, count) as session, _Steps(args.quiet, ctrl_c) as steps:
        if args.source_prompt is not None:
            asked = _inverted(session, args, asked, steps)
        steps.phase("denoising")
        result = session.run(asked, steps)
    parameters = {**result.parameters, **made_from}
    files = write_files(args, engine, result, parameters)
    if args.json:
        report = {"files": [str(f) for f in files], "parameters": parameters, "timings": result.timings}
        print(json.dumps(report))
    else:
        for file in files:
            print(f"wrote {printable(file)}")
    return 0


def _size(args: argparse.Namespace, engine: Components, given: tuple[int, int] | None) -> tuple[int | None, int | None]:
    """Height and width of the images: as given, else about the model's size with the aspect ratio of the image."""
    vae = engine.manifest.vae
    if given is None or args.height is not None or args.width is not None or vae is None:
        return args.height, args.width
    return inputs.fitted_size(given, engine.manifest.unet.sample_size * vae.downscale, vae.downscale)


def _inverted(session: Session, args: argparse.Namespace, asked: GenerateRequest, steps: "_Steps") -> GenerateRequest:
    """The request with initial latents found by inversion."""
    # Check now what sampling would refuse only after the inversion.
    editing.resolve(asked.guidance.edits, asked.steps, asked.steps, "ddim")
    steps.phase("inverting")
    found = session.invert(args.image, args.source_prompt, steps=asked.steps, regularize=args.regularize, on_step=steps)
    return replace(asked, latents=found.latents)


class _Steps:
    """An `on_step` callback: progress on a terminal, and Ctrl-C even if its exception was swallowed."""

    def __init__(self, quiet: bool, ctrl_c: console.CtrlC) -> None:
        self._ctrl_c = ctrl_c
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        out = Console(stderr=True)
        self._progress = Progress(*columns, console=out, transient=True, disable=quiet or not out.is_terminal)
        self._task = self._progress.add_task("denoising", total=None)

    def phase(self, name: str) -> None:
        """Restart the progress under another name."""
        self._progress.reset(self._task, description=name)

    def __call__(self, info: StepInfo) -> bool:
        self._ctrl_c.check()
        self._progress.update(self._task, completed=info.index + 1, total=info.total)
        return True

    def __enter__(self) -> "_Steps":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


if __name__ == "__main__":
    sys.exit(main())
