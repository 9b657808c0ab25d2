"""The methods by name, and the settings that are tried on development prompts."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from ebca.bench.alignment.rivals.attention import Guide
from ebca.bench.alignment.rivals.ebcu import Ebcu
from ebca.bench.alignment.rivals.excite import AttendAndExcite, Excitation
from ebca.bench.alignment.rivals.exclusive import Both, Exclusion, Exclusive
from ebca.bench.alignment.rivals.oracle import Oracle, Told
from ebca.bench.alignment.rivals.regulation import AttentionRegulation, Regulation
from ebca.bench.alignment.tables import changed
from ebca.errors import ParameterError

BASE: Final = "base"
EXCLUSIVE: Final = "exclusive"
ORACLE: Final = "oracle"

Settings = Mapping[str, Any]

_GUIDES: Final[Mapping[str, Callable[[dict[str, Any]], Guide]]] = {
    BASE: lambda settings: Guide(),
    EXCLUSIVE: lambda settings: Exclusive(Exclusion(**settings)),
    "ebcu": lambda settings: Ebcu(**settings),
    "both": lambda settings: Both(Exclusion(**settings)),
    "attend-and-excite": lambda settings: AttendAndExcite(Excitation(**settings)),
    "attention-regulation": lambda settings: AttentionRegulation(Regulation(**settings)),
    ORACLE: lambda settings: Oracle(Told(**settings)),
}

METHODS: Final = tuple(_GUIDES)

# Evaluations of a row that cost as much as the method's own, per evaluation of the base: for estimates of time only. A
# backward pass costs two forward passes; thresholds repeat about 20 steps.
COSTS: Final[Mapping[str, float]] = {"attend-and-excite": 3.0, "attention-regulation": 1.5, ORACLE: 2.0}

_EXCLUSIVE: Final[tuple[Settings, ...]] = (
    {},
    *({"away": a, "boost": b} for a in (0.5, 1.0, 2.0) for b in (0.75, 1.5, 3.0) if (a, b) != (1.0, 1.5)),
    # Which of the two terms does what.
    {"away": 0.0},
    {"away": 0.0, "boost": 3.0},
    {"boost": 0.0},
    {"away": 2.0, "boost": 0.0},
    # Places of another size, at both strengths.
    *({"window": w, **s} for s in ({}, {"away": 2.0, "boost": 3.0}) for w in (0.12, 0.2, 0.25)),
    # Only some of the evaluations.
    *({"end": e} for e in (0.25, 0.5, 0.65, 0.8)),
    {"begin": 0.1},
    {"begin": 0.2},
    {"begin": 0.5},
    {"window": 0.2, "end": 0.5},
    {"window": 0.2, "end": 0.8},
    {"away": 2.0, "boost": 3.0, "end": 0.5},
    {"away": 2.0, "boost": 3.0, "window": 0.2, "end": 0.5},
    # Other layers.
    {"sources": (6,)},
    {"sources": (0, 5, 6)},
    {"biased": (5, 6)},
    {"apart": 0.3},
    {"away": 2.0, "after": False},
)

GRIDS: Final[Mapping[str, tuple[Settings, ...]]] = {
    BASE: ({},),
    EXCLUSIVE: _EXCLUSIVE,
    "ebcu": ({},),
    "both": ({},),
    "attend-and-excite": (
        *({"scale": s} for s in (2.5, 5.0, 10.0, 20.0, 40.0)),
        *({"scale": s, "refinements": 0} for s in (10.0, 20.0, 40.0)),
        *({"scale": s, "nouns": False} for s in (5.0, 20.0)),
        *({"scale": s, "sharpness": 20.0} for s in (5.0, 20.0)),
        {"scale": 10.0, "sharpness": 20.0, "thresholds": ((0.0, 0.05), (0.2, 0.3), (0.4, 0.5))},
        {"scale": 20.0, "until": 0.25},
    ),
    "attention-regulation": (
        *({"rate": r} for r in (3.0, 10.0, 30.0, 100.0)),
        *({"rate": r, "initial": 0.0} for r in (1.0, 3.0, 10.0, 30.0)),
        *({"rate": 10.0, "epsilon": e} for e in (1.0, 10.0)),
        *({"rate": 10.0, "until": u} for u in (0.2, 1.0)),
        *({"rate": 10.0, "layers": layers} for layers in ((5, 6), (0, 1, 2, 3, 4, 5, 6))),
        {"rate": 10.0, "delta": 8.0},
    ),
    ORACLE: (
        {},
        {"away": 4.0},
        {"away": 2.0, "boost": 1.0},
        *({"away": a, "territory": False} for a in (1.0, 2.0, 4.0)),
        {"away": 2.0, "boost": 1.5, "territory": False},
    ),
}
"""Settings of each method that a search tries; what a setting does not name keeps its default."""


def guide(name: str, settings: Settings) -> Guide:
    """The guide of a method.

    Raises:
        ParameterError: there is no such method, or it has no such setting.
    """
    if name not in _GUIDES:
        raise ParameterError(f"there is no method '{name}'", f"choose from {', '.join(_GUIDES)}")
    try:
        return _GUIDES[name](dict(settings))
    except TypeError as error:
        raise ParameterError(f"wrong settings of {name}: {error}") from None


def shown(settings: Settings) -> str:
    """Such as "away 2, end 0.5"; "default" if none is changed."""
    return changed(settings) or "default"
