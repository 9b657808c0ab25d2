"""ControlNets on the command line of ebca-run."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ebca import console
from ebca.errors import ParameterError
from ebca.runtime.cli import options
from ebca.runtime.conditioning.controlnets import Control

_CONTROL = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]+)=)?(?P<file>.*?)(?::(?P<scale>-?(?:\d+\.?\d*|\.\d+)))?", re.DOTALL)
_SHARES: Mapping[str, float] = {"control_start": 0.0, "control_end": 1.0}


def add(p: argparse.ArgumentParser) -> None:
    """Add the options of ControlNets; `controls` reads them."""
    given = p.add_argument_group(
        "ControlNets", "Images that steer the generation; `ebca-export --controlnet` adds them."
    )
    given.add_argument(
        "--control", action=options.Repeated, metavar="[NAME=]FILE[:SCALE]",
        help="what a ControlNet of the engine reads, such as edges.png, canny=edges.png or canny=edges.png:0.8; the "
        "name may be left out if the engine has one. Can be repeated; the effects are added",
    )  # fmt: skip
    for name, meaning in (("start", "begins"), ("end", "ends")):
        given.add_argument(
            f"--control-{name}", type=float, nargs="+", metavar="SHARE",
            help=f"share of the run, 0 to 1, at which a --control {meaning} to act; one for all, or one each",
        )  # fmt: skip


def controls(args: argparse.Namespace) -> tuple[Control, ...]:
    """What the options of ControlNets ask for.

    Raises:
        ParameterError: a --control without a file, or another number of values than of --control.
    """
    named = args.control or []
    for flag in _SHARES:
        if getattr(args, flag) is not None and not named:
            raise ParameterError(f"{_spelled(flag)} needs --control", "give one")
    starts, ends = (_each(flag, getattr(args, flag), default, len(named)) for flag, default in _SHARES.items())
    return tuple(_control(text, *share) for text, *share in zip(named, starts, ends, strict=True))


def _control(text: str, start: float, end: float) -> Control:
    found = _CONTROL.fullmatch(text)
    assert found is not None
    name, file, scale = found["name"], found["file"], found["scale"]
    # A file may be called like a name and a scale.
    if Path(text).is_file():
        name, file, scale = None, text, None
    elif scale is not None and Path(f"{file}:{scale}").is_file():
        file, scale = f"{file}:{scale}", None
    if not file:
        raise ParameterError(f"--control is '{text}'", "write canny=edges.png or canny=edges.png:0.8")
    return Control(str(console.path(file)), 1.0 if scale is None else float(scale), start, end, name)


def _each(flag: str, values: Sequence[float] | None, default: float, count: int) -> list[float]:
    values = [default] if values is None else list(values)
    if len(values) not in (1, count):
        raise ParameterError(
            f"{_spelled(flag)} has {len(values)} values for {count} --control", "give one, or one each"
        )
    return values * count if len(values) == 1 else values


def _spelled(flag: str) -> str:
    return f"--{flag.replace('_', '-')}"
