"""Many prompts with one engine: checked all together first, then run one by one, whatever happens to the others."""

import argparse
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ebca import console
from ebca.errors import CancelledError, EbcaError, ParameterError
from ebca.runtime.cli import options, prompts_file
from ebca.runtime.cli.job import Job
from ebca.runtime.cli.progress import Steps
from ebca.runtime.cli.run_files import check_files, input_files, preview_file, write_files
from ebca.runtime.cli.run_parser import PROGRAM
from ebca.runtime.engine import Engine
from ebca.runtime.images.files import read_parameters
from ebca.runtime.session import Session

# How many lines a message lists.
_SHOWN = 20

_Size = tuple[int | None, int | None, int]


@dataclass
class Done:
    """How many prompts are done. As text: "3 of 10 prompts are done"."""

    count: int = 0
    total: int = 0

    def __str__(self) -> str:
        return f"{self.count} of {self.total} prompts are done"


@dataclass(frozen=True)
class _Prompt:
    """A prompt of the file, its number from 1, and its line."""

    job: Job
    number: int
    line: int

    @property
    def label(self) -> str:
        return f"line {self.line}"


def run(args: argparse.Namespace, ctrl_c: console.CtrlC, done: Done) -> int:
    """Make the images of `--prompts-file`. Images that are there already, made with the same parameters, are skipped.

    A prompt that fails does not stop the others, unless `--stop-on-error` is given.

    Args:
        args: the options.
        ctrl_c: remembers Ctrl-C.
        done: is kept up to date.

    Returns:
        The exit code.

    Raises:
        EbcaError: before anything is computed: a line or a file that cannot be used. In the end: prompts that failed.
            In between: a file that cannot be written, because no other could be either.
    """
    if args.prompt is not None:
        raise ParameterError("--prompts-file and --prompt do not go together", "leave one out")
    prompts = _prompts(args)
    named = [(f"{p.label}: {flag}", file) for p in prompts for flag, file in p.job.files.named()]
    given = [(f"{p.label}: an input", file) for p in prompts for file in p.job.input_files]
    named += preview_file(args)
    check_files(named, [*input_files(args), *given], args.engine)
    with console.PrepareProgress() as prepare:
        engine = options.open_engine(args, None if args.quiet else prepare, quiet=args.quiet)
    with engine:
        parameters = _checked(args, engine, prompts)
        left: list[_Prompt] = []
        finished: list[_Prompt] = []
        for p in prompts:
            (finished if _is_finished(p.job, parameters[p.number], engine) else left).append(p)
        done.count, done.total = len(finished), len(prompts)
        if finished and not args.quiet:
            console.notice(f"{len(finished)} of {len(prompts)} prompts have their images already")
        _report_finished(args, finished)
        failed = _run_all(args, engine, left, Steps(args.quiet, ctrl_c, len(left)), done)
    if failed:
        raise EbcaError(
            f"{len(failed)} of {len(prompts)} prompts failed: {_lines(failed)}",
            "the same command tries only these again",
        )
    return 0


def _prompts(args: argparse.Namespace) -> list[_Prompt]:
    """Every prompt of the file as a job. Raises ParameterError after showing each line that is wrong."""
    lines = prompts_file.read(args.prompts_file)
    prompts, wrong = [], {}
    for number, line in enumerate(lines, 1):
        try:
            job = Job.of(line.options(args, number), number, line.request_fields())
        except EbcaError as error:
            wrong[line.number] = error
        else:
            prompts.append(_Prompt(job, number, line.number))
    _refuse(args, wrong, len(lines))
    return prompts


def _checked(args: argparse.Namespace, engine: Engine, prompts: Sequence[_Prompt]) -> dict[int, Mapping[str, Any]]:
    """The parameters that each prompt's images will have, by its number.

    Raises ParameterError after showing each line that this engine refuses.
    """
    parameters: dict[int, Mapping[str, Any]] = {}
    wrong: dict[int, EbcaError] = {}
    # Sessions own no buffers before their first run.
    sessions: dict[_Size, Session] = {}
    with warnings.catch_warnings():
        # Given when the prompt is run.
        warnings.simplefilter("ignore")
        for p in prompts:
            try:
                size = _size(p, engine)
                if size not in sessions:
                    sessions[size] = engine.session(*size)
                parameters[p.number] = p.job.check(sessions[size])
            except EbcaError as error:
                wrong[p.line] = error
    _refuse(args, wrong, len(prompts))
    return parameters


def _run_all(
    args: argparse.Namespace, engine: Engine, prompts: Sequence[_Prompt], steps: Steps, done: Done
) -> list[_Prompt]:
    """Run prompts of one size after another, so that each size needs one session. Returns those that failed."""
    sizes: dict[_Size, list[_Prompt]] = {}
    for p in prompts:
        sizes.setdefault(_size(p, engine), []).append(p)
    failed: list[_Prompt] = []
    index = 0
    with steps:
        for size, group in sizes.items():
            with engine.session(*size) as session:
                for p in group:
                    steps.begin(index, p.job.phases)
                    index += 1
                    if not _run_one(args, session, p, steps, done):
                        failed.append(p)
    return failed


def _run_one(args: argparse.Namespace, session: Session, p: _Prompt, steps: Steps, done: Done) -> bool:
    """Make and write the images of a prompt. Returns whether it went well."""
    try:
        with _labelled_warnings(p.label):
            result, parameters = p.job.run(session, steps)
    except CancelledError:
        raise
    except EbcaError as error:
        if args.stop_on_error:
            raise EbcaError(f"{p.label}: {error.problem}", error.remedy) from None
        console.tell_error(PROGRAM, f"{p.label}: {error}")
        if args.json:
            _print_json(p, {"error": str(error)})
        return False
    files: list[str] = []
    try:
        for file in write_files(p.job.files, session.engine, result, parameters, p.job.prompt):
            files.append(str(file))
        done.count += 1
    finally:
        if args.json:
            _print_json(p, {"files": files, "parameters": parameters, "timings": result.timings})
        else:
            print("".join(f"wrote {file}\n" for file in files), end="", flush=True)
    return True


def _is_finished(job: Job, parameters: Mapping[str, Any], engine: Engine) -> bool:
    """Whether all files are there, the images have these parameters, and what they were made from is older."""
    files = [file for _, file in job.files.named()]
    try:
        made = min(file.stat().st_mtime_ns for file in files)
        sources = [*job.input_files, engine.directory.path / "manifest.json"]
        if made < max(file.stat().st_mtime_ns for file in sources):
            return False
        expected = json.loads(json.dumps(parameters))
        return all(
            read_parameters(file) == {**expected, "image_index": index} for index, file in enumerate(job.files.images)
        )
    except (OSError, ParameterError):
        return False


def _report_finished(args: argparse.Namespace, prompts: Sequence[_Prompt]) -> None:
    if args.json:
        for p in prompts:
            _print_json(p, {"files": [str(file) for _, file in p.job.files.named()], "skipped": True})


def _print_json(p: _Prompt, report: Mapping[str, Any]) -> None:
    print(json.dumps({"line": p.line, "number": p.number, **report}), flush=True)


def _size(p: _Prompt, engine: Engine) -> _Size:
    return (*p.job.size(engine), p.job.count)


def _refuse(args: argparse.Namespace, wrong: Mapping[int, EbcaError], count: int) -> None:
    """Show what is wrong with each line, the last as the error that ends the command."""
    if not wrong:
        return
    # What is wrong with every line is wrong on the command line.
    if len(wrong) == count and len({str(error) for error in wrong.values()}) == 1:
        raise next(iter(wrong.values()))
    file = prompts_file.shown(args.prompts_file)
    errors = [ParameterError(f"line {line} of {file}: {e.problem}", e.remedy) for line, e in wrong.items()]
    if len(errors) > _SHOWN:
        errors[_SHOWN - 1 :] = [ParameterError(f"{len(errors) - _SHOWN + 1} more lines of {file} cannot be used")]
    for error in errors[:-1]:
        console.tell_error(PROGRAM, str(error))
    raise errors[-1]


def _lines(prompts: Sequence[_Prompt]) -> str:
    numbers = ", ".join(str(p.line) for p in prompts[:_SHOWN])
    more = f" and {len(prompts) - _SHOWN} more" if len(prompts) > _SHOWN else ""
    return f"{'line' if len(prompts) == 1 else 'lines'} {numbers}{more}"


@contextmanager
def _labelled_warnings(label: str) -> Iterator[None]:
    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.showwarning = lambda message, *more: show(f"{label}: {message}", *more)
        yield
