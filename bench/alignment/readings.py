"""Readings as vectors of successes, and as short texts for files."""

from collections.abc import Sequence

import numpy as np

from ebca.bench.alignment.detector import OUTCOMES, Reading

_RELATED = {"": None, "f": False, "t": True}


def vector(readings: Sequence[Reading], measure: str) -> np.ndarray:
    """One value per image [n]: whether "all", "exact", "related" or "correct" holds, or the share of its things with an
    outcome. "correct" is exact, and the relation holds if the prompt has one."""
    if measure in OUTCOMES:
        return np.array([reading.outcomes.count(measure) / len(reading.outcomes) for reading in readings])
    if measure == "correct":
        return np.array([reading.exact and reading.related is not False for reading in readings], bool)
    name = {"all": "all_present", "exact": "exact", "related": "related"}[measure]
    return np.array([bool(getattr(reading, name)) for reading in readings], bool)


def measures(kind: str) -> tuple[str, ...]:
    """Names for `vector` that apply to a kind of prompts."""
    return ("all", "exact", *(("related", "correct") if kind == "relation" else ()), *OUTCOMES[1:])


def to_text(readings: Sequence[Reading]) -> str:
    """Such as "00:2: 03:1:f": the number of each thing's outcome in OUTCOMES, patches, whether the relation holds."""
    shown = {value: letter for letter, value in _RELATED.items()}
    return " ".join(
        f"{''.join(str(OUTCOMES.index(o)) for o in r.outcomes)}:{r.found}:{shown[r.related]}" for r in readings
    )


def from_text(text: str) -> list[Reading]:
    """What `to_text` wrote."""
    found = []
    for one in text.split():
        outcomes, patches, related = one.split(":")
        found.append(Reading(tuple(OUTCOMES[int(o)] for o in outcomes), int(patches), _RELATED[related]))
    return found
