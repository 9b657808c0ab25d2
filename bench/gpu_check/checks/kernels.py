"""Are the kernels right, and how fast are they?"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ebca.bench.gpu_check.results import Failed, Found
from ebca.bench.gpu_check.visit import Visit

_ROOT = Path(__file__).resolve().parents[3]
_TESTS = ("tests/plugins/kernels/test_gpu.py", "tests/plugins/exclusive_attention/test_gpu.py")
_TEST_SECONDS = 45
_OUTCOME = re.compile(r" (PASSED|FAILED|ERROR|SKIPPED) ")
_TAIL = 3000


def run(visit: Visit, found: Found) -> None:
    found["tests"] = tests = run_tests(_TEST_SECONDS * visit.patience)
    found["benchmark"] = _benchmark()
    if tests.get("failed"):
        raise Failed(f"{tests['failed']} kernel tests failed")
    if tests.get("passed") == 0:
        raise Failed("no kernel test ran")


def run_tests(seconds: float) -> dict[str, Any]:
    """Run the GPU tests of the kernels, those of the largest layers first, for at most so long."""
    if find_spec("pytest") is None:
        return {"skipped": "pytest is not installed"}
    if missing := [name for name in _TESTS if not (_ROOT / name).is_file()]:
        return {"skipped": f"there is no {missing[0]}"}
    # Without the project's own options, which need pytest-xdist.
    words = ["-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider", "-v", "-m", "gpu", *_TESTS]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words], cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False, timeout=seconds,
        )  # fmt: skip
        text, ended = done.stdout, False
    except subprocess.TimeoutExpired as error:
        text, ended = (error.stdout or b"").decode(errors="replace"), True
    print(text, flush=True)
    return count(text) | {"ended": ended}


def count(text: str) -> dict[str, Any]:
    """Outcomes in the output of `pytest -v`, and the end of it if a test failed."""
    outcomes = Counter(_OUTCOME.findall(text))
    failed = outcomes["FAILED"] + outcomes["ERROR"]
    made = {"passed": outcomes["PASSED"], "failed": failed, "skipped_tests": outcomes["SKIPPED"]}
    return {**made, "output": text[-_TAIL:]} if failed or not outcomes["PASSED"] else made


def _benchmark() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ebca-gpu-") as folder:
        file = Path(folder) / "kernel.json"
        words = ["--model", "sd-1", "--repeats", "20", "--json", str(file)]
        done = subprocess.run(
            [sys.executable, "-m", "ebca.bench.kernel", *words], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Failed(f"the kernel benchmark failed: {(done.stdout + done.stderr)[-_TAIL:]}")
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for layer in report["layers"]:
        times = {name: row["p50_us"] for name, row in layer["contenders"].items()}
        layer["over_sdpa"] = {name: times[name] / times["sdpa"] for name in ("update", "attention")}
    return report
