"""The check of a GPU, without one: parts are stood in for; what is kept of them is real."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.driver import host_engine

from ebca.bench import gpu_check
from ebca.bench.gpu_check import Failed, Part
from ebca.engines.machine import nvidia
from ebca.errors import BackendError


def fail() -> Any:
    raise BackendError("no kernel for this GPU")


@pytest.fixture
def stood_in(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = nvidia.Gpu("Test GPU", "8.9", 24 << 30)
    monkeypatch.setattr(nvidia, "find", lambda: nvidia.Nvidia("13.0", (gpu,)))
    made = [Part("kernel", lambda: {"ms": 1.5}), Part("latency, tensorrt-rtx", fail), Part("pictures", lambda: "fine")]
    monkeypatch.setattr(gpu_check, "parts", lambda model, work, capability: made)


def test_every_part_runs_and_is_kept(stood_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    assert gpu_check.main(["--json", str(out)]) == 1
    report = json.loads(out.read_text())
    assert report["gpu"]["name"] == "Test GPU" and list(report["parts"]) == [
        "kernel",
        "latency, tensorrt-rtx",
        "pictures",
    ]
    assert report["parts"]["kernel"]["result"] == {"ms": 1.5} and report["parts"]["pictures"]["ok"]
    assert report["parts"]["latency, tensorrt-rtx"]["error"] == "BackendError: no kernel for this GPU"
    assert "failed: latency, tensorrt-rtx" in capsys.readouterr().out


def test_some_parts_only(stood_in: None, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert gpu_check.main(["--json", str(out), "--only", "kernel", "pict"]) == 0
    assert list(json.loads(out.read_text())["parts"]) == ["kernel", "pictures"]


def test_a_command_gives_what_it_wrote_or_how_it_ended(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    code = f"open({str(out)!r}, 'w').write('[1, 2]')"
    assert gpu_check.command([sys.executable, "-c", code], out) == [1, 2]
    with pytest.raises(Failed, match=r"exit code 3\nlast words"):
        gpu_check.command([sys.executable, "-c", "print('last words'); raise SystemExit(3)"])


def test_the_parts_cover_every_backend(tmp_path: Path) -> None:
    names = [part.name for part in gpu_check.parts("sd-1.5", tmp_path, "8.9")]
    for backend in ("tensorrt-rtx", "onnxruntime-cuda"):
        for what in ("export shapes", "pictures", "export", "verify", "latency", "50 steps"):
            assert f"{what}, {backend}" in names


def test_fifty_steps_at_once_and_one_by_one(tiny_engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, driver = host_engine(tiny_engine_dir)
    monkeypatch.setattr(gpu_check, "load", lambda *about: engine)
    monkeypatch.setattr(gpu_check, "_ROUNDS", 2)
    made = gpu_check.fifty_steps(tiny_engine_dir, "onnxruntime-cuda")
    for way in ("one_launch", "step_by_step"):
        taken = made[way]
        assert taken["first_s"] > 0 and taken["picture_s"] > taken["denoising_s"] > 0
    # PNDM evaluates 51 times; twice in one launch.
    assert driver.count["launch"] == 2 + 2 * 51


def test_tensorrt_is_checked_where_it_is_installed_with_and_without_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(gpu_check, "command", lambda words, *more: ran.append(list(words)))
    for installed in (None, object()):
        monkeypatch.setattr(gpu_check, "find_spec", lambda name, installed=installed: installed)
        parts = {part.name: part for part in gpu_check.parts("sd-1.5", tmp_path, "9.0")}
        assert ("pictures, tensorrt --one-piece" in parts) == ("latency, tensorrt" in parts) == bool(installed)
    parts["export, tensorrt"].run()
    parts["export, tensorrt --one-piece"].run()
    cut, whole = ran
    assert "--one-piece" in whole and "--one-piece" not in cut and cut[-1] != whole[-1]


def test_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def none() -> nvidia.Nvidia:
        raise BackendError("there is no NVIDIA driver; install one")

    monkeypatch.setattr(nvidia, "find", none)
    assert gpu_check.main([]) == 1
    assert capsys.readouterr().err == "gpu_check: error: there is no NVIDIA driver; install one\n"
