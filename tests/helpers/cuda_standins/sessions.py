"""Opens graphs over the stand-ins from a test."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.cuda_standins.build import build, missing_tool
from helpers.cuda_standins.inspection import Report

from ebca.engines.contract.manifest import Component

PYTHON = "EBCA_ORT_GPU_PYTHON"
"""The environment variable that names the interpreter with onnxruntime-gpu."""
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Job:
    """A graph to open, its component, and the sizes to open it for (`ebca.engines.contract.dims`)."""

    graph: Path
    component: Component
    sizes: dict[str, int]


@dataclass(frozen=True)
class StandIns:
    """An interpreter with onnxruntime-gpu, and the folder of the libraries."""

    python: str
    libraries: Path

    def run(self, module: str, *arguments: str | Path) -> str:
        """Run a module of this folder there; its output. Raises AssertionError with it if the module fails."""
        environment = os.environ | {"LD_LIBRARY_PATH": str(self.libraries), "PYTHONPATH": str(ROOT / "tests")}
        return _run(self.python, "-m", f"helpers.cuda_standins.{module}", *arguments, env=environment)

    def inspect(self, jobs: Sequence[Job], folder: Path) -> list[Report]:
        """One report per job, in order.

        Args:
            folder: for the files through which both interpreters talk.
        """
        asked, answered = folder / "jobs.json", folder / "reports.json"
        content = [{"graph": str(job.graph), "component": asdict(job.component), "sizes": job.sizes} for job in jobs]
        asked.write_text(json.dumps(content), encoding="utf-8")
        self.run("inspection", asked, answered)
        return [Report(**one) for one in json.loads(answered.read_text(encoding="utf-8"))]


def unavailable() -> str | None:
    """Why nothing can be opened over stand-ins here; None if it can."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "the stand-ins for NVIDIA's libraries are for Linux on x86-64"
    if PYTHON not in os.environ:
        return f"{PYTHON} does not name a Python with onnxruntime-gpu, as .ci/run makes it"
    tool = missing_tool()
    return None if tool is None else f"the stand-ins for NVIDIA's libraries need {tool}"


def stand_ins(folder: Path) -> StandIns:
    """Build the libraries in `folder`. Skips the test where `unavailable` has a reason."""
    if reason := unavailable():
        pytest.skip(reason)
    python = os.environ[PYTHON]
    where = "from importlib.util import find_spec; print(find_spec('onnxruntime').submodule_search_locations[0])"
    package = Path(_run(python, "-c", where).strip())
    return StandIns(python, build(package / "capi", folder))


def _run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
