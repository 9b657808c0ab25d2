"""Runs the parts, each in its own process, and writes DIR/PART.json and DIR/summary.json after each."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ebca.bench.gpu_check import process
from ebca.bench.gpu_check.results import ENDED, FAILED, PASSED, SKIPPED, targets, write_json
from ebca.bench.gpu_check.table import ENGINES, EXPORT_SECONDS, PARTS, Part
from ebca.bench.gpu_check.visit import Visit
from ebca.engines.contract import manifest as manifests
from ebca.engines.contract.directory import sha256
from ebca.errors import ParameterError

SUMMARY: Final = "summary.json"
_PROGRESS_SECONDS: Final = 10
_LEAST_SECONDS: Final = 5.0  # no part is worth starting with less
_TAIL: Final = 4000  # characters of output that a result keeps

Say = Callable[[str], None]


def command(part: Part, visit: Path, result: Path) -> list[str]:
    """The process of a part."""
    return [sys.executable, "-m", "ebca.bench.gpu_check", "part", part.name, str(visit), str(result)]


@dataclass
class Runner:
    """One run of the check.

    visit: what to check.
    facts: GPU and versions, for every result.
    limit: seconds for all parts together; None: only the limits of the parts.
    say: receives progress, a line at a time.

    Raises:
        ParameterError: the folder holds results of another GPU.
    """

    visit: Visit
    facts: Mapping[str, Any]
    limit: float | None = None
    say: Say = print
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def check(self, parts: Sequence[Part], again: Sequence[str] = ()) -> dict[str, Any]:
        """Run the parts that have no result yet, and those whose names are in `again`. Returns the summary."""
        output = self.visit.output
        (output / "log").mkdir(parents=True, exist_ok=True)
        self._read_earlier()
        wanted = tuple(dict.fromkeys(name for part in parts for name in part.engines))
        self.visit = replace(self.visit, wanted=wanted)
        self.visit.write(output / "log" / "visit.json")
        missing = [name for name in wanted if self.visit.find(name) is None]
        if missing and (self.visit.export or any(self.visit.packed(name) for name in missing)):
            self._run(ENGINES, EXPORT_SECONDS if self.visit.export else ENGINES.limit)
        for part in parts:
            earlier = self.reports.get(part.name)
            if earlier is not None and earlier["finished"] and part.name not in again:
                self.say(f"{part.name}: {earlier['status']} earlier; --again {part.name} runs it again")
            elif self._left() < _LEAST_SECONDS:
                self.say(f"{part.name}: no time left; the same command continues here")
            else:
                self._run(part, part.limit)
        return self._summary()

    def _left(self) -> float:
        return float("inf") if self.limit is None else self.limit - (time.monotonic() - self.began)

    def _read_earlier(self) -> None:
        """Take the results of earlier runs."""
        for file in self.visit.output.glob("*.json"):
            try:
                report = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                report = None
            if not isinstance(report, dict) or "gpu" not in report:
                raise ParameterError(f"'{file}' is no result of this check", "name another --output")
            if report["gpu"] != self.facts["gpu"]:
                raise ParameterError(
                    f"'{self.visit.output}' holds results of another GPU or driver ({report['gpu'].get('name')})",
                    "name another --output",
                )
            if file.name != SUMMARY:
                self.reports[report["part"]] = report

    def _run(self, part: Part, limit: float) -> None:
        own = limit * self.visit.patience
        limit = min(own, self._left())
        log = self.visit.output / "log"
        result, printed = log / f"{part.name}.result.json", log / f"{part.name}.log"
        result.unlink(missing_ok=True)
        self.say(f"{part.name}: {part.what} (limit {limit:.0f} s)")
        shown = 0

        def tick(seconds: float) -> None:
            nonlocal shown
            if seconds >= shown + _PROGRESS_SECONDS:
                shown += _PROGRESS_SECONDS
                self.say(f"{part.name}: {seconds:.0f}/{limit:.0f} s")

        outcome = process.run(command(part, log / "visit.json", result), printed, limit, tick)
        report = self._report(part, outcome, result, printed) | {"limit_s": round(limit, 1)}
        # What was skipped may run the next time, and a part that only this run's limit has ended would have gone on.
        report["finished"] = report["status"] in (PASSED, FAILED) or (report["status"] == ENDED and limit == own)
        self.reports[part.name] = report
        write_json(self.visit.output / f"{part.name}.json", report)
        self._summary()
        self.say(_line(part, report))

    def _report(self, part: Part, outcome: process.Outcome, result: Path, printed: Path) -> dict[str, Any]:
        said: dict[str, Any] = {"status": None, "reason": "", "result": {}}
        with suppress(OSError, ValueError):
            said = json.loads(result.read_text(encoding="utf-8"))
        status, reason = said["status"], said["reason"]
        if outcome.code is None:
            status, reason = ENDED, "the limit was reached; what was found by then is in the result"
        elif status is None:
            status, reason = FAILED, f"the process ended with exit code {outcome.code}"
        report = {
            "part": part.name,
            "what": part.what,
            "status": status,
            "reason": reason,
            "seconds": round(outcome.seconds, 1),
            **self.facts,
            "engines": {name: _identity(self.visit, name) for name in part.engines},
            "result": said["result"],
        }
        if status in (FAILED, ENDED):
            report["output"] = printed.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
        return report

    def _summary(self) -> dict[str, Any]:
        kept = ("status", "reason", "seconds", "limit_s", "finished")
        order = [ENGINES.name, *(part.name for part in PARTS)]
        reports = dict(sorted(self.reports.items(), key=lambda item: order.index(item[0])))
        summary = {
            **self.facts,
            "parts": {name: {key: report[key] for key in kept} for name, report in reports.items()},
            "targets": {
                f"{name}.{path}": value for name, report in reports.items() for path, value in targets(report["result"])
            },
            "seconds": round(time.monotonic() - self.began, 1),
        }
        write_json(self.visit.output / SUMMARY, summary)
        return summary


def _identity(visit: Visit, name: str) -> dict[str, Any] | None:
    folder = visit.find(name)
    if folder is None:
        return None
    manifest = folder / manifests.FILE_NAME
    return {"manifest_sha256": sha256(manifest), "model": manifests.read(folder).model.get("name")}


def _line(part: Part, report: Mapping[str, Any]) -> str:
    line = f"{part.name}: {report['status']} after {report['seconds']:.1f} s"
    if report["status"] in (SKIPPED, FAILED):
        line += f": {report['reason'].splitlines()[0]}" if report["reason"] else ""
    met = [value["met"] for _, value in targets(report["result"])]
    if met and report["status"] in (PASSED, ENDED):
        line += f", {sum(met)} of {len(met)} targets met"
    return line
