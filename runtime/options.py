"""Command-line options that several programs share, and what they mean."""

import argparse
import math

from ebca.engines.backend import BACKENDS, PRECISIONS
from ebca.errors import ParameterError
from ebca.runtime.schedules import Gamma, Schedule


def add_energy(p: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The step sizes of the context update and their schedule; `gammas` reads them. Returns the group."""
    energy = p.add_argument_group("energy-based context update")
    for flag in ("attn", "norm"):
        energy.add_argument(
            f"--gamma-{flag}", f"--gamma_{flag}", type=float, nargs="+", default=[0.0], metavar="G",
            help=f"step size of the {'attention' if flag == 'attn' else 'norm'} term: one number that the schedule "
            "shapes, or one per evaluation (pndm makes steps + 1) (default: 0)",
        )  # fmt: skip
    energy.add_argument(
        "--gamma-schedule",
        choices=("reverse_step", "step", "constant", "linear", "exponential"),
        default="reverse_step",
        help="course of both gammas over the steps: reverse_step is on until --gamma-tau, step from there on; linear "
        "adds --gamma-ratio each step, exponential multiplies by it (default: reverse_step)",
    )
    energy.add_argument(
        "--gamma-tau",
        "--gamma_tau",
        type=float,
        default=1.0,
        help="share of the steps, see --gamma-schedule (default: 1)",
    )
    energy.add_argument("--gamma-ratio", type=float, default=None, help="see --gamma-schedule")
    energy.add_argument(
        "--norm-factor", type=float, default=1.0,
        help="factor of |k|^2 in the norm term: 1 as in the authors' code, 0.5 as in the paper (default: 1)",
    )  # fmt: skip
    return energy


def add_machine(p: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Device, backend, precision, threads. Returns the group."""
    machine = p.add_argument_group("machine")
    machine.add_argument("--device", default="cpu", choices=("cpu",), help="where to run (default: cpu)")
    machine.add_argument("--backend", choices=BACKENDS, help="inference backend (default: the best one installed)")
    machine.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="bf16 needs openvino and a processor with it"
    )
    machine.add_argument("--threads", type=int, help="default: one per physical core")
    return machine


def gammas(args: argparse.Namespace) -> tuple[Gamma, Gamma]:
    """gamma_attn and gamma_norm as `Session.generate` takes them.

    Raises:
        ParameterError: a value or a combination that makes no schedule.
    """
    return _gamma("--gamma-attn", args.gamma_attn, args), _gamma("--gamma-norm", args.gamma_norm, args)


def _gamma(flag: str, values: list[float], args: argparse.Namespace) -> Gamma:
    if len(values) > 1:
        return values
    (value,) = values
    if not math.isfinite(value):
        raise ParameterError(f"{flag} is {value}; give a finite number")
    kind = args.gamma_schedule
    if kind == "constant":
        return Schedule.constant(value)
    if kind in ("linear", "exponential"):
        if args.gamma_ratio is None:
            raise ParameterError(f"--gamma-schedule {kind} needs --gamma-ratio")
        return (
            Schedule.linear(value, args.gamma_ratio)
            if kind == "linear"
            else Schedule.exponential(value, args.gamma_ratio)
        )
    return Schedule.step(value, args.gamma_tau) if kind == "step" else Schedule.reverse_step(value, args.gamma_tau)
