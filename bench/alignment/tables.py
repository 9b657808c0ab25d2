"""Rows of result tables, from the JSON of `ebca-bench alignment` and of the study."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ebca.bench.alignment.detector import OUTCOMES
from ebca.bench.alignment.statistics import Paired, wilson
from ebca.errors import ParameterError

TITLES = {
    "all": "all present",
    "exact": "exact",
    "related": "relation holds",
    "correct": "exact, relation holds",
    "miscolored": "things miscolored",
    "misshapen": "things misshapen",
    "neglected": "things neglected",
}

COLUMNS = ("prompts", "sampling", "measure", "method", "share (95 %)", "difference (95 %)", "gained / lost", "p")


@dataclass(frozen=True)
class Row:
    """One measure of one method for one kind of prompts. `paired` compares it with the base, None for the base."""

    kind: str
    n: int
    sampling: str
    measure: str
    method: str
    share: float
    paired: Paired | None

    def cells(self) -> tuple[str, ...]:
        """The texts of COLUMNS, numbers in percent."""
        share = f"{100 * self.share:.1f}"
        # Shares of things are not shares of independent cases, so they have no interval of this form.
        if self.measure not in OUTCOMES:
            low, high = wilson(round(self.share * self.n), self.n)
            share += f" ({100 * low:.1f} to {100 * high:.1f})"
        changes: tuple[str, ...] = ("", "", "")
        if self.paired is not None:
            difference, gained, p = difference_cells(self.paired)
            changes = (difference, gained, "" if self.measure in OUTCOMES else p)
        return (f"{self.kind} ({self.n})", self.sampling, TITLES[self.measure], self.method, share, *changes)


def difference_cells(paired: Paired) -> tuple[str, str, str]:
    """The difference with its interval in percentage points, gained / lost, McNemar's p."""
    return (
        f"{100 * paired.difference:+.1f} ({100 * paired.low:+.1f} to {100 * paired.high:+.1f})",
        f"{paired.gained} / {paired.lost}",
        paired.p_text,
    )


def rows(report: Mapping[str, Any]) -> list[Row]:
    """The rows of a report: `runs` of `ebca-bench alignment`, or `cells` of the study.

    Raises:
        ParameterError: it is neither.
    """
    try:
        return list(_of_runs(report["runs"]) if "runs" in report else _of_cells(report["cells"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ParameterError(
            f"this is no report of images and their prompts: {error!r}",
            "give a file that ebca-bench alignment or the study has written",
        ) from None


def _of_runs(runs: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for run in runs:
        settings = run["settings"]
        sampling = sampling_text(settings["scheduler"], settings["steps"], settings["guidance_scale"])
        for kind, entry in run["kinds"].items():
            for measure in next(iter(entry["methods"].values())):
                for method, shares in entry["methods"].items():
                    paired = entry["compared"].get(method, {}).get(measure)
                    yield _row(kind, settings["count"], sampling, measure, method, shares[measure], paired)


def _of_cells(cells: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for cell in cells:
        sampling = sampling_text(cell["scheduler"], cell["steps"], cell["guidance_scale"])
        settings = changed(cell["settings"])
        method = cell["method"] + (f" ({settings})" if settings else "")
        for measure, share in cell["shares"].items():
            paired = cell.get("compared", {}).get(measure)
            yield _row(cell["kind"], cell["count"], sampling, measure, method, share, paired)


def _row(
    kind: str, n: int, sampling: str, measure: str, method: str, share: float, paired: Mapping[str, Any] | None
) -> Row:
    return Row(kind, n, sampling, measure, method, share, None if paired is None else Paired(**paired))


def sampling_text(scheduler: str | None, steps: int, guidance_scale: float | None) -> str:
    """Such as "ddim 25, guidance 4"; what the engine chooses is left out."""
    guidance = "" if guidance_scale is None else f", guidance {guidance_scale:g}"
    return f"{scheduler or 'default'} {steps}{guidance}"


def changed(settings: Mapping[str, Any]) -> str:
    """Such as "away 2, end 0.5"; "" for no settings."""
    return ", ".join(f"{name} {_short(value)}" for name, value in settings.items())


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "-".join(map(_short, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
