"""The models whose graphs the tests open over the stand-ins, and the table of what they become.

    PYTHONPATH=tests EBCA_ORT_GPU_PYTHON=... python -m helpers.cuda_standins.models

writes the table again.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from helpers.cuda_standins import full_size
from helpers.cuda_standins.full_size import ARCHITECTURES, COMPONENTS
from helpers.cuda_standins.inspection import Report
from helpers.cuda_standins.sessions import ROOT, Job, StandIns, stand_ins

from ebca.engines.contract.directory import open_directory
from ebca.engines.contract.manifest import Component, component_from_json
from ebca.export.checkpoint.tokenizer import CLIP_MAX_LENGTH

BACKEND = "onnxruntime-cuda"
TABLE = ROOT / "tests" / "export" / "cuda" / "graphs.json"
SMALL = ("tiny", "tiny-xl", "shapes")
FULL_SIZE = tuple(ARCHITECTURES)
_CHECKPOINTS = {"tiny": "tiny", "tiny-xl": "tiny-xl", "shapes": str(ROOT / "examples" / "shapes" / "shapes")}
T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """How much is left of one graph. Both numbers are upper bounds: a graph that gets better is no failure, and its
    nodes are few only if everything was fused that should be."""

    nodes: int
    transposes: int

    @classmethod
    def of(cls, report: Report) -> "Size":
        return cls(report.nodes, report.operators.get("Transpose", 0))

    def exceeds(self, limit: "Size") -> bool:
        return self.nodes > limit.nodes or self.transposes > limit.transposes


def small(folder: Path) -> dict[str, Path]:
    """Export each of SMALL as the command line does for this backend. Name -> engine directory."""

    def make(name: str) -> Path:
        words = ["--model", _CHECKPOINTS[name], "--backend", BACKEND, "--output-dir", str(folder / name)]
        _run("-m", "ebca.export.cli", *words)
        return folder / name

    return _side_by_side(SMALL, make)


def small_jobs(directory: Path) -> dict[str, Job]:
    """Component -> its graph, of a directory that `small` made."""
    manifest = open_directory(directory).manifest
    assert manifest.text_encoder is not None
    return _jobs(directory, manifest.components, manifest.unet.sample_size, manifest.text_encoder.max_length)


def full_sizes(folder: Path, names: Sequence[str] = FULL_SIZE) -> dict[str, dict[str, Job]]:
    """Make the graphs of models at full size: name -> component -> its graph. A graph that an earlier one has too is
    left out."""

    def make(name: str) -> dict[str, Job]:
        (folder / name).mkdir()
        _run(full_size.__file__, name, str(folder / name))
        made = json.loads((folder / name / COMPONENTS).read_text(encoding="utf-8"))
        components = {part: component_from_json(entry) for part, entry in made["components"].items()}
        return _jobs(Path(made["folder"]), components, ARCHITECTURES[name].unet["sample_size"], CLIP_MAX_LENGTH)

    return _distinct(_side_by_side(names, make))


def _side_by_side(names: Sequence[str], make: Callable[[str], T]) -> dict[str, T]:
    """Name -> what `make` returns. Two at once: each is a process that traces, on one thread."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(names, pool.map(make, names), strict=True))


def _run(*words: str) -> None:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stderr[-4000:]}"


def worse(model: str, reports: Mapping[str, Report]) -> dict[str, Size]:
    """Component -> size, of those graphs of a model that exceed their limit in the table.

    Raises AssertionError if the model has other components than the table.
    """
    limits = {name: Size(*row) for name, row in json.loads(TABLE.read_text(encoding="utf-8"))[model].items()}
    assert reports.keys() == limits.keys()
    sizes = {name: Size.of(report) for name, report in reports.items()}
    return {name: size for name, size in sizes.items() if size.exceeds(limits[name])}


def _jobs(folder: Path, components: Mapping[str, Component], side: int, tokens: int) -> dict[str, Job]:
    """Every graph of the backend, to be opened for one image of the model's own size with guidance."""
    sizes = {"batch": 2, "contexts": 1, "tokens": tokens, "height": side, "width": side}
    lowered = {name: one for name, one in components.items() if BACKEND in one.lowered}
    return {name: Job(folder / one.graph_for(BACKEND), one, sizes) for name, one in lowered.items()}


def _distinct(every: Mapping[str, Mapping[str, Job]]) -> dict[str, dict[str, Job]]:
    seen: set[tuple[object, ...]] = set()
    kept: dict[str, dict[str, Job]] = {}
    for model, jobs in every.items():
        kept[model] = {}
        for name, job in jobs.items():
            key = hashlib.sha256(job.graph.read_bytes()).hexdigest(), *job.sizes.values()
            if key not in seen:
                kept[model][name] = job
            seen.add(key)
    return kept


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        opener: StandIns = stand_ins(folder / "libraries")
        jobs = {name: small_jobs(directory) for name, directory in small(folder).items()} | full_sizes(folder)
        lines = []
        for model, parts in jobs.items():
            reports = opener.inspect(list(parts.values()), folder)
            sizes = [Size.of(report) for report in reports]
            rows = (f'    "{name}": [{s.nodes}, {s.transposes}]' for name, s in zip(parts, sizes, strict=True))
            lines.append(f'  "{model}": {{\n' + ",\n".join(rows) + "\n  }")
        TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
