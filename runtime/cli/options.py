"""Command-line options that several programs share, and what they mean."""

import argparse
import math
from collections.abc import Sequence
from typing import TypeVar

from ebca.engines.backends.registry import CPU_BACKENDS, GPU_BACKENDS, PRECISIONS
from ebca.errors import ParameterError
from ebca.runtime.components import OnPrepare
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.conditioning.schedules import Gamma, Kind, Schedule
from ebca.runtime.devices.registry import parse
from ebca.runtime.engine import Engine, load

T = TypeVar("T")

SCHEDULES = """schedules:
  Where G or A stands, write a number, or KIND:VALUE[:PARAMETER] to say its course over the steps:
  constant:0.01  step:0.01:0.2 (on from 20 % of the steps)  reverse_step:0.01:0.5 (on until half)
  linear:0.01:0.001 (plus 0.001 each step)  exponential:0.01:0.9 (times 0.9 each step)
"""


def number_or_schedule(text: str) -> float | Schedule:
    """The type of an option that takes either."""
    try:
        return Schedule.parse(text) if ":" in text else float(text)
    except ParameterError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# argparse names the type in its message.
number_or_schedule.__name__ = "number"


def device(text: str) -> str:
    """The type of `--device`."""
    try:
        parse(text)
    except ParameterError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_energy(p: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The step sizes of the context update and their schedule; `gammas` reads them. Returns the group."""
    energy = p.add_argument_group("energy-based context update")
    for flag in ("attn", "norm"):
        energy.add_argument(
            f"--gamma-{flag}", f"--gamma_{flag}", type=number_or_schedule, nargs="+", default=[0.0], metavar="G",
            help=f"step size of the {'attention' if flag == 'attn' else 'norm'} term: one number that the schedule "
            "shapes, a schedule of its own, or one number per evaluation (pndm makes steps + 1) (default: 0)",
        )  # fmt: skip
    energy.add_argument(
        "--gamma-schedule",
        choices=("reverse_step", "step", "constant", "linear", "exponential"),
        help="course of both gammas over the steps: reverse_step is on until --gamma-tau, step from there on; linear "
        "adds --gamma-ratio each step, exponential multiplies by it (default: reverse_step; constant with "
        "--editing-prompt or --mask)",
    )
    energy.add_argument(
        "--gamma-tau", "--gamma_tau", type=float, nargs="+", metavar="TAU",
        help="share of the steps, see --gamma-schedule (default: 1). With --editing-prompt it belongs to the editing "
        "prompts, as in the authors' scripts: their gammas are on from there (default: 0)",
    )  # fmt: skip
    energy.add_argument("--gamma-ratio", type=float, default=None, help="see --gamma-schedule")
    energy.add_argument(
        "--norm-factor", type=float, default=1.0,
        help="factor of |k|^2 in the norm term: 1 as in the authors' code, 0.5 as in the paper (default: 1)",
    )  # fmt: skip
    return energy


def add_editing(p: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The editing prompts; `edits` reads them. Returns the group."""
    editing = p.add_argument_group(
        "editing prompts", "Each option takes one value for all editing prompts, or one for each."
    )
    editing.add_argument(
        "--editing-prompt", "--editing_prompt", nargs="+", default=[], metavar="TEXT",
        help="what to add to the main prompt or to take away from it",
    )  # fmt: skip
    editing.add_argument(
        "--editing-direction", "--editing_direction", type=int, nargs="+", choices=(0, 1), metavar="0|1",
        help="1 adds (conjunction), 0 takes away (negation) (default: 1)",
    )  # fmt: skip
    editing.add_argument(
        "--alpha", type=number_or_schedule, nargs="+", metavar="A",
        help="weight of the editing prompt beside 1 for the main prompt (default: 1)",
    )  # fmt: skip
    editing.add_argument(
        "--alpha-tau", "--alpha_tau", type=float, nargs="+", metavar="TAU",
        help="alpha is on from this share of the steps; smaller changes more (default: 0)",
    )  # fmt: skip
    for flag in ("attn", "norm"):
        editing.add_argument(
            f"--gamma-{flag}-compose", f"--gamma_{flag}_compose", type=number_or_schedule, nargs="+", metavar="G",
            help=f"step size of the {'attention' if flag == 'attn' else 'norm'} term for the editing prompt's own "
            "context; on from --gamma-tau (default: 0)",
        )  # fmt: skip
    editing.add_argument(
        "--reset-edits", action="store_true",
        help="start every step from the editing prompts' embeddings; by default their contexts go on from step to step",
    )  # fmt: skip
    return editing


def add_machine(p: argparse.ArgumentParser, threads: str = "default: one per physical core") -> argparse._ArgumentGroup:
    """Device, backend, precision, threads (with that help). Returns the group."""
    machine = p.add_argument_group("machine")
    machine.add_argument("--device", type=device, default="cpu", help="cpu, cuda, or cuda:1 and so on (default: cpu)")
    machine.add_argument(
        "--backend", choices=(*CPU_BACKENDS, *GPU_BACKENDS),
        help="default: onnxruntime, openvino for bf16; with --device cuda what the engine has plans for, else "
        "onnxruntime-cuda",
    )  # fmt: skip
    machine.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="bf16 needs openvino and a processor with it"
    )
    machine.add_argument("--threads", type=int, metavar="N", help=threads)
    return machine


def open_engine(args: argparse.Namespace, on_prepare: OnPrepare | None) -> Engine:
    """The engine of `--engine` on the machine that `add_machine` describes; raises as `ebca.load` does."""
    return load(
        args.engine,
        args.device,
        args.backend,
        precision=args.precision,
        threads=args.threads,
        on_prepare=on_prepare,
    )


def gammas(args: argparse.Namespace) -> tuple[Gamma, Gamma]:
    """gamma_attn and gamma_norm as `Session.generate` takes them.

    Raises:
        ParameterError: a value or a combination that makes no schedule.
    """
    return _gamma("--gamma-attn", args.gamma_attn, args), _gamma("--gamma-norm", args.gamma_norm, args)


def edits(args: argparse.Namespace) -> list[Edit]:
    """The editing prompts as `Session.generate` takes them.

    Raises:
        ParameterError: another number of values than of editing prompts, or values without an editing prompt.
    """
    count = len(args.editing_prompt)
    if not count:
        for flag in ("editing_direction", "alpha", "alpha_tau", "gamma_attn_compose", "gamma_norm_compose"):
            if getattr(args, flag) is not None:
                raise ParameterError(f"--{flag.replace('_', '-')} needs --editing-prompt")
        return []
    alpha_tau = _each("--alpha-tau", args.alpha_tau, 0.0, count)
    gamma_tau = _each("--gamma-tau", args.gamma_tau, 0.0, count)
    columns = zip(
        args.editing_prompt,
        _each("--editing-direction", args.editing_direction, 1, count),
        _late("--alpha", _each("--alpha", args.alpha, 1.0, count), alpha_tau),
        _late("--gamma-attn-compose", _each("--gamma-attn-compose", args.gamma_attn_compose, 0.0, count), gamma_tau),
        _late("--gamma-norm-compose", _each("--gamma-norm-compose", args.gamma_norm_compose, 0.0, count), gamma_tau),
        strict=True,
    )
    return [Edit(*column) for column in columns]


def _each(flag: str, values: Sequence[T] | None, default: T, count: int) -> list[T]:
    values = [default] if values is None else list(values)
    if len(values) not in (1, count):
        raise ParameterError(f"{flag} has {len(values)} values for {count} editing prompts", "give one, or one each")
    return values * count if len(values) == 1 else values


def _late(flag: str, values: Sequence[float | Schedule], taus: Sequence[float]) -> list[Schedule]:
    """Numbers become the authors' step schedule; schedules stay what they are."""
    return [
        value if isinstance(value, Schedule) else Schedule.step(_finite(flag, value), tau)
        for value, tau in zip(values, taus, strict=True)
    ]


def _gamma(flag: str, values: list[float | Schedule], args: argparse.Namespace) -> Gamma:
    if len(values) > 1:
        numbers = [value for value in values if not isinstance(value, Schedule)]
        if len(numbers) < len(values):
            raise ParameterError(f"{flag} has a schedule among several values", "give one schedule, or numbers only")
        return numbers
    (value,) = values
    if isinstance(value, Schedule):
        return value
    _finite(flag, value)
    editing = bool(getattr(args, "editing_prompt", None))
    # As in the authors' scripts: with reverse_step, pndm's last evaluation has 0.
    inpainting = bool(getattr(args, "mask", None)) and args.gamma_tau is None
    kind: Kind = args.gamma_schedule or ("constant" if editing or inpainting else "reverse_step")
    if kind == "constant":
        return Schedule.constant(value)
    if kind in ("linear", "exponential"):
        if args.gamma_ratio is None:
            raise ParameterError(f"--gamma-schedule {kind} needs --gamma-ratio")
        return Schedule(kind, value, args.gamma_ratio)
    if editing:
        raise ParameterError(
            "with --editing-prompt, --gamma-tau belongs to the editing prompts",
            f"instead of --gamma-schedule {kind}, write {flag} {kind}:{value:g}:TAU",
        )
    taus = [1.0] if args.gamma_tau is None else args.gamma_tau
    if len(taus) != 1:
        raise ParameterError(f"--gamma-tau has {len(taus)} values", "several are for --editing-prompt")
    return Schedule(kind, value, taus[0])


def _finite(flag: str, value: float) -> float:
    if not math.isfinite(value):
        raise ParameterError(f"{flag} is {value}", "give a finite number")
    return value
