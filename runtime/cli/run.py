"""ebca-run: images from an engine directory."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ebca import console
from ebca.runtime.cli import batch, options
from ebca.runtime.cli.job import Job
from ebca.runtime.cli.progress import Steps
from ebca.runtime.cli.run_files import check_files, input_files, preview_file, write_files
from ebca.runtime.cli.run_parser import PROGRAM, parser
from ebca.runtime.cli.run_repeat import filled
from ebca.runtime.engine import warn_of_differences
from ebca.runtime.request.inputs import control_files


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    written: list[Path] = []
    done = batch.Done()

    def interrupted() -> str:
        if done.total:
            return f"interrupted; {done}; run the same command again to continue"
        return f"interrupted; {f'{len(written)} files were' if written else 'no image was'} written"

    def body() -> int:
        args = _arguments(argv)
        if args.print_engine_directory:
            print(options.engine_directory(args, quiet=args.quiet))
            return 0
        if args.prompts_file is not None:
            return batch.run(args, ctrl_c, done)
        return _run(args, ctrl_c, written)

    ctrl_c = console.CtrlC()
    return console.run(PROGRAM, body, interrupted=interrupted, ctrl_c=ctrl_c)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    p = parser()
    args = p.parse_args(argv)
    if args.from_image is not None:
        return filled(p, args, argv)
    required = {"--engine": args.engine}
    if not args.print_engine_directory:
        required["--prompt (or --prompts-file)"] = args.prompt or args.source_prompt or args.prompts_file
    if missing := [flag for flag, value in required.items() if value is None]:
        p.error(f"the following arguments are required: {', '.join(missing)}")
    return args


def _run(args: argparse.Namespace, ctrl_c: console.CtrlC, written: list[Path]) -> int:
    job = Job.of(args)
    read = [*input_files(args), *(("--region", file) for file in job.region_files)]
    read += [("--control", file) for file in control_files(job.asked)]
    check_files([*job.files.named(), *preview_file(args)], read, args.engine)
    with console.PrepareProgress() as prepare:
        engine = options.open_engine(args, None if args.quiet else prepare, quiet=args.quiet)
    if args.recorded is not None:
        warn_of_differences(args.from_image, args.recorded, engine)
    height, width = job.size(engine)
    with engine, engine.session(height, width, job.count) as session, Steps(args.quiet, ctrl_c) as steps:
        steps.begin(0, job.phases)
        result, parameters = job.run(session, steps)
    try:
        for file in write_files(job.files, engine, result, parameters, job.prompt):
            written.append(file)
    finally:
        # Also of files beside one that cannot be written.
        if not args.json:
            print("".join(f"wrote {file}\n" for file in written), end="")
        elif written:
            files = [str(file) for file in written]
            print(json.dumps({"files": files, "parameters": parameters, "timings": result.timings}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
