"""Command-line options that several programs share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ebca import console
from ebca.engines.adapters.asked import merged
from ebca.engines.backends.registry import CPU_BACKENDS, GPU_BACKENDS, PRECISIONS
from ebca.engines.contract.directory import open_directory
from ebca.errors import ParameterError
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.conditioning.schedules import Gamma, Kind, Schedule
from ebca.runtime.conditioning.subjects import AUTO as AUTO_SUBJECTS
from ebca.runtime.devices.choice import AUTO, parse
from ebca.runtime.engine import Engine, OnDevice, load
from ebca.runtime.runners import OnPrepare
from ebca.runtime.schema import parameters as rules
from ebca.runtime.validation import finite

T = TypeVar("T")

SCHEDULES = """schedules:
  G and A are numbers, or schedules over the evaluations, written KIND:VALUE[:PARAMETER]:
    constant:0.01          0.01 throughout
    step:0.01:0.2          0, then 0.01 from 20 % of the steps on
    reverse_step:0.01:0.5  0.01 for the first half of the steps, then 0
    linear:0.01:0.001      0.01, plus 0.001 per evaluation
    exponential:0.01:0.9   0.01, times 0.9 per evaluation
"""


def number_or_schedule(text: str) -> float | Schedule:
    """Type of an option that takes a number or a schedule."""
    try:
        return Schedule.parse(text) if ":" in text else float(text)
    except ParameterError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# Shown in argparse's message: "invalid number value".
number_or_schedule.__name__ = "number"


def device(text: str) -> str:
    """Type of `--device`."""
    try:
        parse(text)
    except ParameterError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_engine(p: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--engine`."""
    p.add_argument(
        "--engine", required=required, type=console.name_or_path, metavar="DIR",
        help="engine directory made by ebca-export, or the name of a bundled engine such as shapes",
    )  # fmt: skip


def add_adapters(p: argparse.ArgumentParser) -> None:
    """Add LoRAs and embeddings; `open_engine` merges them."""
    given = p.add_argument_group(
        "LoRAs and embeddings",
        "Merged into a copy of the engine's weights in the user's cache, once; see docs/lora.md.",
    )
    given.add_argument(
        "--lora", action=Repeated, metavar="FILE[:SCALE]",
        help="a LoRA (.safetensors of diffusers, PEFT or kohya) and its strength (default: 1). Can be repeated",
    )  # fmt: skip
    given.add_argument(
        "--embedding", action=Repeated, metavar="FILE[=TOKEN]",
        help="a textual inversion (.safetensors), and what the prompt writes for it (default: what the file says). Can "
        "be repeated",
    )  # fmt: skip
    given.add_argument(
        "--print-engine-directory", action="store_true",
        help="print the engine directory that has them, for the C library or --engine, and make no image",
    )  # fmt: skip


def engine_directory(args: argparse.Namespace, *, quiet: bool = False) -> Path:
    """The engine directory of `--engine` with `--lora` and `--embedding` merged into it. Raises as `derive`."""
    with console.MergeProgress() as merge:
        directory = open_directory(args.engine)
        return merged(directory, args.lora or [], args.embedding or [], None if quiet else merge).path


def add_energy(p: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the step sizes of the context update and their schedule; `gammas` reads them. Returns the group."""
    energy = p.add_argument_group("energy-based context update")
    for flag, term, default in (
        ("attn", "attention", rules.GENERATE.gamma_attn),
        ("norm", "norm", rules.GENERATE.gamma_norm),
    ):
        energy.add_argument(
            f"--gamma-{flag}", f"--gamma_{flag}", type=number_or_schedule, nargs="+", default=[default], metavar="G",
            help=f"step size of the {term} term: a number, which follows --gamma-schedule; a schedule; or one number "
            f"per evaluation (pndm makes steps + 1) (default: {default:g})",
        )  # fmt: skip
    energy.add_argument(
        "--gamma-schedule",
        choices=("reverse_step", "step", "constant", "linear", "exponential"),
        help="how both gammas change over the steps: reverse_step applies them until --gamma-tau, step from "
        "--gamma-tau on, constant throughout; linear adds --gamma-ratio per evaluation, exponential multiplies by it "
        "(default: constant; reverse_step with --gamma-tau, if there is no --editing-prompt)",
    )
    energy.add_argument(
        "--gamma-tau", "--gamma_tau", type=float, nargs="+", metavar="TAU",
        help="share of the steps for --gamma-schedule step and reverse_step (default: 1, where pndm's one evaluation "
        "more than steps is outside). With --editing-prompt it applies to the editing "
        "prompts instead, as in the authors' scripts: their gammas start there (default: 0)",
    )  # fmt: skip
    energy.add_argument("--gamma-ratio", type=float, default=None, help="see --gamma-schedule")
    energy.add_argument(
        "--norm-factor", type=float, default=rules.GENERATE.norm_factor,
        help="factor of |k|^2 in the norm term: 1 as in the authors' code, 0.5 as in the paper (default: %(default)g)",
    )  # fmt: skip
    return energy


def add_editing(p: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the editing prompts; `edits` reads them. Returns the group."""
    editing = p.add_argument_group(
        "editing prompts", "Each option takes one value for all editing prompts, or one per editing prompt."
    )
    editing.add_argument(
        "--editing-prompt", "--editing_prompt", nargs="+", default=[], metavar="TEXT",
        help="what to add to the main prompt, or to take away from it",
    )  # fmt: skip
    editing.add_argument(
        "--editing-direction", "--editing_direction", type=int, nargs="+", choices=(0, 1), metavar="0|1",
        help=f"1 adds (conjunction), 0 takes away (negation) (default: {rules.EDIT.direction})",
    )  # fmt: skip
    editing.add_argument(
        "--alpha", type=number_or_schedule, nargs="+", metavar="A",
        help=f"weight of the editing prompt; the main prompt has weight 1 (default: {rules.EDIT.alpha:g})",
    )  # fmt: skip
    editing.add_argument(
        "--alpha-tau", "--alpha_tau", type=float, nargs="+", metavar="TAU",
        help="share of the steps after which alpha applies; a smaller share changes more (default: 0)",
    )  # fmt: skip
    for flag, term, default in (
        ("attn", "attention", rules.EDIT.gamma_attn),
        ("norm", "norm", rules.EDIT.gamma_norm),
    ):
        editing.add_argument(
            f"--gamma-{flag}-compose", f"--gamma_{flag}_compose", type=number_or_schedule, nargs="+", metavar="G",
            help=f"step size of the {term} term for the contexts of editing prompts; applies from --gamma-tau on "
            f"(default: {default:g})",
        )  # fmt: skip
    editing.add_argument(
        "--reset-edits", action="store_true",
        help="start every evaluation from the embeddings of the editing prompts; by default, their contexts carry over "
        "from evaluation to evaluation",
    )  # fmt: skip
    return editing


class Repeated(argparse.Action):
    """Like "append", for any default that is no list: --from-image asks with one of its own what was given."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(before if isinstance(before, list) else []), values])


def add_subjects(p: argparse.ArgumentParser) -> None:
    """Add subjects and regions; `subjects` and `regions` read them."""
    given = p.add_argument_group(
        "subjects", "Things of the prompt that get a place of their own, so that none takes another's."
    )
    given.add_argument(
        "--subjects", nargs="*", metavar="PHRASE",
        help="phrases of the prompt; without any, they are found in it, and a prompt with fewer than two is made as "
        "usual",
    )  # fmt: skip
    given.add_argument(
        "--region", action=Repeated, metavar="PHRASE=WHERE",
        help="where a phrase belongs: a mask (white there), or left,top,right,bottom from 0 to 1. Can be repeated; a "
        "phrase with a region is a subject",
    )  # fmt: skip
    for name, meaning, default in (
        ("exclusion", "how strongly a subject is kept inside its place", rules.GENERATE.subject_exclusion),
        ("balance", "how strongly the weakest subject is supported", rules.GENERATE.subject_balance),
    ):
        given.add_argument(
            f"--subject-{name}", type=number_or_schedule, nargs="+", metavar="S",
            help=f"{meaning}, 0 to {rules.MAX_SUBJECT_STRENGTH}: a number, a schedule, or one number per evaluation "
            f"(default: {default:g})",
        )  # fmt: skip
    given.add_argument(
        "--subject-window", type=float, metavar="SIDES",
        help=f"size of a place, in sides of the smaller side (default: {rules.GENERATE.subject_window:g})",
    )  # fmt: skip


def subjects(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of subjects as `Session.generate` takes them, as far as they are given.

    Raises:
        ParameterError: a region that is not written as PHRASE=WHERE or is given twice, or several values of which one
            is a schedule.
    """
    found: dict[str, Any] = {}
    if args.subjects is not None:
        found["subjects"] = args.subjects if args.subjects not in ([], [AUTO_SUBJECTS]) else AUTO_SUBJECTS
    if args.region:
        found["regions"] = regions(args.region)
    for name in ("subject_exclusion", "subject_balance"):
        if (values := getattr(args, name)) is not None:
            found[name] = _one_or_numbers(f"--{name.replace('_', '-')}", values)
    if args.subject_window is not None:
        found["subject_window"] = args.subject_window
    return found


def regions(given: Sequence[str]) -> dict[str, str | tuple[float, ...]]:
    """Files of masks, and boxes, by phrase. Raises ParameterError as `subjects` does."""
    found: dict[str, str | tuple[float, ...]] = {}
    for text in given:
        phrase, sign, where = (part.strip() for part in text.partition("="))
        if not (phrase and sign and where):
            raise ParameterError(f"--region is '{text}'", 'write "red circle=mask.png" or "red circle=0.1,0.2,0.5,0.9"')
        if phrase in found:
            raise ParameterError(f"--region names '{phrase}' twice", "give one region for each phrase")
        try:
            found[phrase] = tuple(float(number) for number in where.split(","))
        except ValueError:
            found[phrase] = where
    return found


def add_machine(p: argparse.ArgumentParser, threads: str = "default: one per physical core") -> argparse._ArgumentGroup:
    """Add device, backend, precision and threads. Returns the group.

    Args:
        p: the parser.
        threads: help text of `--threads`.
    """
    machine = p.add_argument_group("machine")
    machine.add_argument(
        "--device", type=device, default=AUTO,
        help="auto, cpu, cuda, cuda:1 and so on; auto is the GPU if the engine computes in float16 and everything for "
        "the GPU is installed, else the CPU, and a line says which and why; cuda never becomes the CPU (default: auto)",
    )  # fmt: skip
    machine.add_argument(
        "--backend", choices=(*CPU_BACKENDS, *GPU_BACKENDS),
        help="default on the CPU: onnxruntime, or openvino for bf16; on a GPU: the library that the engine has plans "
        "for, else onnxruntime-cuda. A backend also decides what --device auto is",
    )  # fmt: skip
    machine.add_argument(
        "--precision", choices=PRECISIONS, default="fp32",
        help="bf16 needs openvino and a processor that supports it (default: fp32)",
    )  # fmt: skip
    machine.add_argument("--threads", type=int, metavar="N", help=threads)
    return machine


def tell_device(args: argparse.Namespace) -> OnDevice | None:
    """Prints the line that says which device `--device auto` is; None if a device was named, or a backend, which is as
    good."""
    return (lambda choice: console.notice(str(choice))) if args.device == AUTO and args.backend is None else None


def open_engine(args: argparse.Namespace, on_prepare: OnPrepare | None, *, quiet: bool = False) -> Engine:
    """Open `--engine` with the options of `add_machine`, and say on stderr what `--device auto` is.

    Args:
        args: the options.
        on_prepare: as in `ebca.load`.
        quiet: do not say it.

    Raises the same errors as `ebca.load`.
    """
    # Other programs than ebca-run have no options for these.
    lora, embedding = (getattr(args, name, None) or [] for name in ("lora", "embedding"))
    with console.MergeProgress() as merge:
        return load(
            args.engine,
            args.device,
            args.backend,
            precision=args.precision,
            threads=args.threads,
            on_prepare=on_prepare,
            on_device=None if quiet else tell_device(args),
            lora=lora,
            embedding=embedding,
            on_merge=None if quiet else merge,
        )


def gammas(args: argparse.Namespace) -> tuple[Gamma, Gamma]:
    """gamma_attn and gamma_norm as `Session.generate` takes them.

    Raises:
        ParameterError: values that do not form a schedule.
    """
    return _gamma("--gamma-attn", args.gamma_attn, args), _gamma("--gamma-norm", args.gamma_norm, args)


def edits(args: argparse.Namespace) -> list[Edit]:
    """The editing prompts as `Session.generate` takes them.

    Raises:
        ParameterError: a wrong number of values, or values without an editing prompt.
    """
    count = len(args.editing_prompt)
    if not count:
        for flag in ("editing_direction", "alpha", "alpha_tau", "gamma_attn_compose", "gamma_norm_compose"):
            if getattr(args, flag) is not None:
                raise ParameterError(
                    f"--{flag.replace('_', '-')} needs --editing-prompt", "give --editing-prompt, or leave it out"
                )
        return []
    alpha_tau = _each("--alpha-tau", args.alpha_tau, 0.0, count)
    gamma_tau = _each("--gamma-tau", args.gamma_tau, 0.0, count)
    columns = zip(
        args.editing_prompt,
        _each("--editing-direction", args.editing_direction, rules.EDIT.direction, count),
        _late("--alpha", args.alpha, rules.EDIT.alpha, alpha_tau),
        _late("--gamma-attn-compose", args.gamma_attn_compose, rules.EDIT.gamma_attn, gamma_tau),
        _late("--gamma-norm-compose", args.gamma_norm_compose, rules.EDIT.gamma_norm, gamma_tau),
        strict=True,
    )
    return [Edit(*column) for column in columns]


def _each(flag: str, values: Sequence[T] | None, default: T, count: int) -> list[T]:
    values = [default] if values is None else list(values)
    if len(values) not in (1, count):
        raise ParameterError(f"{flag} has {len(values)} values for {count} editing prompts", "give one, or one each")
    return values * count if len(values) == 1 else values


def _late(
    flag: str, values: Sequence[float | Schedule] | None, default: float, taus: Sequence[float]
) -> list[Schedule]:
    """One schedule per editing prompt. A number becomes the authors' step schedule, which starts at tau."""
    return [
        value if isinstance(value, Schedule) else Schedule.step(finite(flag, value), tau)
        for value, tau in zip(_each(flag, values, default, len(taus)), taus, strict=True)
    ]


def _one_or_numbers(flag: str, values: Sequence[float | Schedule]) -> float | Schedule | list[float]:
    """One number or schedule, or one number per evaluation."""
    numbers = [value for value in values if not isinstance(value, Schedule)]
    if len(values) > 1 and len(numbers) < len(values):
        raise ParameterError(f"{flag} has a schedule among several values", "give one schedule, or only numbers")
    return numbers if len(values) > 1 else values[0]


def _gamma(flag: str, values: list[float | Schedule], args: argparse.Namespace) -> Gamma:
    value = _one_or_numbers(flag, values)
    if isinstance(value, Schedule | list):
        return value
    finite(flag, value)
    editing = bool(getattr(args, "editing_prompt", None))
    # With editing prompts, --gamma-tau is theirs.
    kind: Kind = args.gamma_schedule or ("constant" if editing or args.gamma_tau is None else "reverse_step")
    if kind == "constant":
        return Schedule.constant(value)
    if kind in ("linear", "exponential"):
        if args.gamma_ratio is None:
            raise ParameterError(f"--gamma-schedule {kind} needs --gamma-ratio", "give it")
        return Schedule(kind, value, args.gamma_ratio)
    if editing:
        raise ParameterError(
            f"with --editing-prompt, --gamma-tau applies to the editing prompts, so --gamma-schedule {kind} has no tau",
            f"write {flag} {kind}:{value:g}:TAU instead",
        )
    taus = [1.0] if args.gamma_tau is None else args.gamma_tau
    if len(taus) != 1:
        raise ParameterError(f"--gamma-tau has {len(taus)} values without --editing-prompt", "give one")
    return Schedule(kind, value, taus[0])
