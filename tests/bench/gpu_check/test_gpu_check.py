"""The GPU check without a GPU: order, limits, resuming and results. Processes are real, what they measure is not."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ebca.bench.gpu_check import cli, runner, worker
from ebca.bench.gpu_check.checks import plans
from ebca.bench.gpu_check.results import Found, Skipped, against, targets
from ebca.bench.gpu_check.runner import Runner
from ebca.bench.gpu_check.table import ENGINES, PARTS, TOTAL_SECONDS, Part
from ebca.bench.gpu_check.visit import Visit
from ebca.engines.contract.directory import open_directory
from ebca.engines.machine import nvidia
from ebca.errors import BackendError, ParameterError

FACTS: dict[str, Any] = {"gpu": {"name": "Test GPU", "driver": "580.1"}, "versions": {"ebca": "0.1.0"}, "cores": 16}

PASS = """
import json, sys
json.dump({"status": "passed", "reason": "", "result": {"ms": 1.5}}, open(sys.argv[1], "w"))
"""
FAIL = "print('no kernel for this GPU'); raise SystemExit(3)"
# Reports something, starts a process of its own, and takes too long.
SLEEP = """
import json, os, subprocess, sys, time
json.dump({"status": None, "reason": "", "result": {"half": 1}}, open(sys.argv[1], "w"))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1] + ".pid", "w").write(str(child.pid))
time.sleep(600)
"""


def part(name: str, limit: int = 20, *engines: str) -> Part:
    return Part(name, limit, engines, f"what {name} finds")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], list[str]]:
    """What the processes of parts run instead, by name, and the names of those that ran."""
    code: dict[str, str] = {}
    ran: list[str] = []

    def command(part: Part, visit: Path, result: Path) -> list[str]:
        ran.append(part.name)
        return [sys.executable, "-c", code.get(part.name, PASS), str(result)]

    monkeypatch.setattr(runner, "command", command)
    return code, ran


def visit(tmp_path: Path, **changes: Any) -> Visit:
    given = {"engines": None, "export": False, "model": None, "capability": "9.0"} | changes
    return Visit(output=tmp_path / "out", **given)


def check(tmp_path: Path, *parts: Part, again: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    limit = changes.pop("limit", None)
    facts = changes.pop("facts", FACTS)
    return Runner(visit(tmp_path, **changes), facts, limit, lambda text: None).check(parts, again)


def read(tmp_path: Path, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    return data


def test_the_most_important_parts_come_first_and_all_fit_eight_minutes() -> None:
    names = [part.name for part in PARTS]
    assert names[:7] == ["runs", "right", "steps", "parts", "memory", "rivals", "kernels"]
    assert names[-2:] == ["tensorrt-rtx", "tensorrt"]
    assert TOTAL_SECONDS == ENGINES.limit + sum(part.limit for part in PARTS) <= 480


def test_the_documentation_has_every_part_with_its_limit() -> None:
    text = (Path(__file__).parents[3] / "docs" / "gpu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+) s \|", text, flags=re.MULTILINE)
    assert rows == [(part.name, str(part.limit)) for part in (ENGINES, *PARTS)]


@pytest.mark.parametrize("part", (ENGINES, *PARTS), ids=lambda part: part.name)
def test_every_part_has_a_module(part: Part) -> None:
    assert callable(import_module(part.module).run)


def test_every_part_runs_and_has_a_result(tmp_path: Path, scripts: tuple[dict[str, str], list[str]]) -> None:
    code, ran = scripts
    code["right"] = FAIL
    summary = check(tmp_path, part("runs"), part("right"), part("steps"))
    assert ran == ["runs", "right", "steps"]
    assert {name: report["status"] for name, report in summary["parts"].items()} == {
        "runs": "passed",
        "right": "failed",
        "steps": "passed",
    }
    for name in ran:
        report = read(tmp_path, name)
        assert (
            report["gpu"]["driver"] == "580.1" and report["versions"] == {"ebca": "0.1.0"} and report["limit_s"] == 20
        )
    assert read(tmp_path, "runs")["result"] == {"ms": 1.5}
    assert read(tmp_path, "right")["reason"] == "the process ended with exit code 3"
    assert read(tmp_path, "right")["output"] == "no kernel for this GPU\n"
    assert read(tmp_path, "summary")["parts"] == summary["parts"]


def test_a_part_that_takes_too_long_is_ended_with_all_its_processes(
    tmp_path: Path, scripts: tuple[dict[str, str], list[str]]
) -> None:
    code, _ = scripts
    code["rivals"] = SLEEP
    summary = check(tmp_path, part("rivals", 2), part("kernels"))
    report = read(tmp_path, "rivals")
    assert report["status"] == "ended" and report["finished"] and 2 <= report["seconds"] < 10
    assert report["result"] == {"half": 1}, "what was found before is kept"
    assert summary["parts"]["kernels"]["status"] == "passed"
    assert not running(int((tmp_path / "out" / "log" / "rivals.result.json.pid").read_text()))


def running(pid: int) -> bool:
    """Whether a process still runs; an ended one that nobody has waited for does not."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.1)
    return True


def test_the_same_command_continues(tmp_path: Path, scripts: tuple[dict[str, str], list[str]]) -> None:
    code, ran = scripts
    code["right"] = FAIL
    parts = part("runs"), part("right"), part("steps")
    check(tmp_path, *parts[:2])
    ran.clear()
    summary = check(tmp_path, *parts)
    assert ran == ["steps"], "parts that passed or failed are finished"
    assert list(summary["parts"]) == ["runs", "right", "steps"]
    ran.clear()
    code["right"] = PASS
    assert check(tmp_path, *parts, again=("right",))["parts"]["right"]["status"] == "passed"
    assert ran == ["right"]


def test_a_part_that_only_the_whole_limit_ended_runs_again(
    tmp_path: Path, scripts: tuple[dict[str, str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_LEAST_SECONDS", 0.5)
    code, ran = scripts
    code["runs"] = SLEEP
    summary = check(tmp_path, part("runs"), part("right"), limit=1.5)
    assert ran == ["runs"] and summary["parts"]["runs"]["status"] == "ended"
    assert not summary["parts"]["runs"]["finished"] and "right" not in summary["parts"]
    code["runs"] = PASS
    summary = check(tmp_path, part("runs"), part("right"))
    assert {report["status"] for report in summary["parts"].values()} == {"passed"}


def test_patience_multiplies_limits(tmp_path: Path, scripts: tuple[dict[str, str], list[str]]) -> None:
    assert check(tmp_path, part("runs", 10), patience=2.5)["parts"]["runs"]["limit_s"] == 25


def test_results_of_another_gpu_are_kept_apart(tmp_path: Path, scripts: tuple[dict[str, str], list[str]]) -> None:
    check(tmp_path, part("runs"))
    with pytest.raises(ParameterError, match=r"results of another GPU or driver \(Test GPU\); name another --output"):
        check(tmp_path, part("runs"), facts={**FACTS, "gpu": {"name": "Another"}})


def test_other_files_are_not_taken_for_results(tmp_path: Path, scripts: tuple[dict[str, str], list[str]]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.json").write_text("[]")
    with pytest.raises(ParameterError, match="is no result of this check"):
        check(tmp_path, part("runs"))


def test_missing_directories_are_made_first(tmp_path: Path, scripts: tuple[dict[str, str], list[str]]) -> None:
    _, ran = scripts
    engines = tmp_path / "engines"
    engines.mkdir()
    check(tmp_path, part("steps", 20, "model"), engines=engines)
    assert ran == ["steps"], "there is nothing to make it from"
    (engines / "model.tar.xz").write_bytes(b"")
    check(tmp_path, part("steps", 20, "model"), engines=engines, again=("steps",))
    check(tmp_path, part("steps", 20, "model"), export=True, again=("steps",))
    assert ran == ["steps", "engines", "steps", "engines", "steps"]


def test_progress_is_told_with_the_limit(
    tmp_path: Path, scripts: tuple[dict[str, str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_PROGRESS_SECONDS", 1)
    code, _ = scripts
    code["right"] = SLEEP
    said: list[str] = []
    Runner(visit(tmp_path), FACTS, None, said.append).check([part("runs"), part("right", 3)])
    assert said[0] == "runs: what runs finds (limit 20 s)" and said[1].startswith("runs: passed after ")
    assert "right: 1/3 s" in said and said[-1].startswith("right: ended after 3")


def test_targets_stand_beside_values_and_in_the_summary(
    tmp_path: Path, scripts: tuple[dict[str, str], list[str]]
) -> None:
    result = {"one_launch": {"update": {"image_s": against(0.39, 0.40), "denoising_s": against(0.41, 0.36)}}}
    assert dict(targets(result)) == {
        "one_launch.update.image_s": {"value": 0.39, "target": 0.40, "met": True},
        "one_launch.update.denoising_s": {"value": 0.41, "target": 0.36, "met": False},
    }
    code, _ = scripts
    code["steps"] = f"""
import json, sys
result = json.loads({json.dumps(result)!r})
json.dump({{"status": "passed", "reason": "", "result": result}}, open(sys.argv[1], "w"))
"""
    summary = check(tmp_path, part("steps"))
    assert summary["parts"]["steps"]["status"] == "passed"
    assert summary["targets"]["steps.one_launch.update.denoising_s"]["met"] is False


@pytest.fixture
def fake_part(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Visit, Found], None]], None]:
    def replace(run: Callable[[Visit, Found], None]) -> None:
        module = ModuleType("fake")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setattr(worker, "import_module", lambda name: module)

    return replace


def test_a_worker_records_how_its_part_ended(
    tmp_path: Path, fake_part: Callable[[Callable[[Visit, Found], None]], None]
) -> None:
    def fail(visit: Visit, found: Found) -> None:
        found["before"] = visit.capability
        raise BackendError("no kernel for this GPU")

    def skip(visit: Visit, found: Found) -> None:
        raise Skipped("use onnxruntime-cuda")

    visit(tmp_path, engines=tmp_path, wanted=("model",)).write(tmp_path / "visit.json")
    assert Visit.read(tmp_path / "visit.json") == visit(tmp_path, engines=tmp_path, wanted=("model",))
    argv = ["steps", str(tmp_path / "visit.json"), str(tmp_path / "result.json")]
    for run, code, wanted in (
        (fail, 1, {"status": "failed", "reason": "BackendError: no kernel for this GPU", "result": {"before": "9.0"}}),
        (skip, 0, {"status": "skipped", "reason": "use onnxruntime-cuda", "result": {}}),
        (lambda visit, found: found.update({"ms": 1}), 0, {"status": "passed", "reason": "", "result": {"ms": 1}}),
    ):
        fake_part(run)
        assert worker.main(argv) == code
        assert json.loads((tmp_path / "result.json").read_text()) == wanted


def test_a_real_part_in_its_process(tmp_path: Path) -> None:
    (real,) = [part for part in PARTS if part.name == "cpp"]
    summary = check(tmp_path, real)
    assert summary["parts"]["cpp"]["status"] == "skipped" and not summary["parts"]["cpp"]["finished"]
    assert "there is no engine directory 'model'" in summary["parts"]["cpp"]["reason"]


def test_tensorrt_for_rtx_is_skipped_where_it_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "installed_version", lambda library: "1.7.1")
    monkeypatch.setattr(plans, "supported_capabilities", lambda library: ("8.9", "12.0"))
    with pytest.raises(Skipped, match=r"does not support compute capability 9\.0: use onnxruntime-cuda"):
        plans.run_library(visit(tmp_path), Found(), "tensorrt-rtx")
    with pytest.raises(Skipped, match="no engine directory 'shapes-tensorrt-rtx'"):
        plans.run_library(visit(tmp_path, capability="8.9"), Found(), "tensorrt-rtx")
    monkeypatch.setattr(plans, "installed_version", lambda library: None)
    assert plans.why_not("tensorrt", "8.9") == "tensorrt is not installed"


def test_the_checkpoint_is_the_one_of_the_directory(tmp_path: Path, tiny_engine_dir: Path) -> None:
    engines = tmp_path / "engines"
    engines.mkdir()
    (engines / "model").symlink_to(tiny_engine_dir)
    assert visit(tmp_path, engines=engines).checkpoint() == "tiny"
    assert visit(tmp_path, engines=engines, model="sd-1.5").checkpoint() == "sd-1.5"
    (engines / "model").unlink()
    (engines / "model").symlink_to(open_directory("shapes").path)
    with pytest.raises(Skipped, match="name it with --model"):
        visit(tmp_path, engines=engines).checkpoint()


def test_the_command_line(
    tmp_path: Path,
    scripts: tuple[dict[str, str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, ran = scripts
    code["kernels"] = FAIL
    monkeypatch.setattr(cli, "facts", lambda: {**FACTS, "gpu": {"name": "Test GPU", "compute_capability": "8.9"}})
    argv = ["--output", str(tmp_path / "out"), "--engines", str(tmp_path)]
    assert cli.main([*argv, "--only", "steps"]) == 0
    assert cli.main([*argv, "--only", "steps", "kernels"]) == 1
    assert ran == ["steps", "kernels"]
    assert "failed or ended: kernels" in capsys.readouterr().out
    assert cli.main([*argv, "--only", "steps"]) == 0, "parts that were not asked for do not count"
    assert cli.main([*argv, "--limit", "0"]) == 1
    assert "not run: runs, right" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--only", "everything"], "there is no part 'everything'; choose from runs, right"),
        (["--engines", "/absent"], "--engines names '/absent', which is no folder"),
        (
            ["--output", "/absent"],
            "there are no engine directories; name their folder with --engines, or pass --export",
        ),
        (["--only", "kernels"], "there is no NVIDIA driver; install one"),
    ],
)
def test_mistakes_are_one_clear_line(
    argv: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> nvidia.Nvidia:
        raise BackendError("there is no NVIDIA driver", "install one")

    monkeypatch.setattr(nvidia, "find", none)
    assert cli.main(argv) == 1
    assert f"gpu_check: error: {message}" in capsys.readouterr().err


def test_the_list_names_every_part_and_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [part.name for part in PARTS]
    assert all(f"{part.limit} s" in line for part, line in zip(PARTS, lines, strict=True))


def test_pack_and_unpack_as_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "shapes.tar.xz", tmp_path / "shapes"
    assert cli.main(["pack", "--engine", "shapes", "--output", str(file)]) == 0
    assert "0.0 MB are made again" in capsys.readouterr().out
    assert cli.main(["unpack", str(file), "--output", str(folder)]) == 0
    # The weights of a trained model are held, and unpacking compares all contents with the manifest.
    assert open_directory(folder).manifest == open_directory("shapes").manifest
    assert cli.main(["unpack", str(file), "--output", str(folder)]) == 1
    assert "exists" in capsys.readouterr().err
