"""The methods that quality benchmarks compare, and their command-line options."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ebca.runtime.cli.options import add_energy, gammas, number_or_schedule
from ebca.runtime.conditioning.schedules import Gamma
from ebca.runtime.conditioning.schedules import to_json as gamma_json

BASE = "base"
METHODS = (BASE, "ebcu", "exclusive", "both")

STRENGTHS = ("subject_exclusion", "subject_balance", "subject_window")
"""Settings of a method that are None for the runtime's default."""


@dataclass(frozen=True)
class Method:
    """What differs between the images: arguments of `Session.generate`.

    thing_weight: factor of gamma_attn on the words for the things of the prompt.
    subjects: every thing of the prompt is a subject, such as "red circle".
    subject_exclusion, subject_balance, subject_window: as in `Session.generate`, whose default None leaves.
    """

    name: str
    gamma_attn: Gamma = 0.0
    gamma_norm: Gamma = 0.0
    norm_factor: float = 1.0
    thing_weight: float = 1.0
    subjects: bool = False
    subject_exclusion: Gamma | None = None
    subject_balance: Gamma | None = None
    subject_window: float | None = None

    @property
    def strengths(self) -> dict[str, Any]:
        """Those of STRENGTHS that are given."""
        found = {name: getattr(self, name) for name in STRENGTHS}
        return {name: value for name, value in found.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """JSON values; schedules as in a request."""
        found = {name: getattr(self, name) for name in ("gamma_attn", "gamma_norm", *STRENGTHS)}
        return {**asdict(self), **{name: None if value is None else gamma_json(value) for name, value in found.items()}}


def add_methods(p: argparse.ArgumentParser, default: tuple[str, ...]) -> None:
    """`--methods`."""
    p.add_argument("--methods", nargs="+", choices=METHODS, default=list(default), metavar="METHOD",
                   help=f"{', '.join(METHODS)} (default: {' '.join(default)}); all are compared with base")  # fmt: skip


def add_settings(p: argparse.ArgumentParser, words: str) -> None:
    """The settings of the methods. `words` says what --thing-upweight applies to."""
    energy = add_energy(p)
    energy.set_defaults(gamma_norm=[0.003])
    energy.add_argument(
        "--thing-upweight",
        type=float,
        default=1.0,
        metavar="W",
        help=f"factor of the attention step on {words} (default: 1)",
    )
    subjects = p.add_argument_group("exclusive attention", "Defaults are the runtime's.")
    subjects.add_argument("--subject-exclusion", type=number_or_schedule, metavar="L",
                          help="how strongly a subject is kept inside its place: a number or a schedule")  # fmt: skip
    subjects.add_argument("--subject-balance", type=number_or_schedule, metavar="M",
                          help="how strongly a weak subject is supported: a number or a schedule")  # fmt: skip
    subjects.add_argument("--subject-window", type=float, metavar="S", help="size of a place, in sides of the image")


def methods(args: argparse.Namespace) -> tuple[Method, ...]:
    """The methods of a command line; the base is always the first.

    Raises:
        ParameterError: gammas that do not form a schedule.
    """
    gamma_attn, gamma_norm = gammas(args)
    update: dict[str, Any] = {
        "gamma_attn": gamma_attn,
        "gamma_norm": gamma_norm,
        "norm_factor": args.norm_factor,
        "thing_weight": args.thing_upweight,
    }
    exclusive: dict[str, Any] = {"subjects": True, **{name: getattr(args, name) for name in STRENGTHS}}
    fields: Mapping[str, dict[str, Any]] = {
        BASE: {}, "ebcu": update, "exclusive": exclusive, "both": update | exclusive
    }  # fmt: skip
    return tuple(Method(name, **fields[name]) for name in METHODS if name in args.methods or name == BASE)
