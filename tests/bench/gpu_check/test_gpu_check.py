"""The GPU check without a GPU: its parts are replaced, and its result is real."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.driver import host_engine

from ebca.bench.gpu_check import cli, images
from ebca.bench.gpu_check import parts as parts_
from ebca.bench.gpu_check.commands import Failed, Part, command
from ebca.engines.machine import nvidia
from ebca.errors import BackendError


def fail() -> Any:
    raise BackendError("no kernel for this GPU")


@pytest.fixture
def replaced_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = nvidia.Gpu("Test GPU", "8.9", 24 << 30)
    monkeypatch.setattr(nvidia, "find", lambda: nvidia.Nvidia("13.0", (gpu,)))
    made = [Part("kernel", lambda: {"ms": 1.5}), Part("latency, tensorrt-rtx", fail), Part("images", lambda: "fine")]
    monkeypatch.setattr(cli, "parts", lambda model, work, capability: made)


def test_every_part_runs_and_is_in_the_result(
    replaced_parts: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    assert cli.main(["--json", str(out)]) == 1
    report = json.loads(out.read_text())
    assert report["gpu"]["name"] == "Test GPU" and list(report["parts"]) == [
        "kernel",
        "latency, tensorrt-rtx",
        "images",
    ]
    assert report["parts"]["kernel"]["result"] == {"ms": 1.5} and report["parts"]["images"]["ok"]
    assert report["parts"]["latency, tensorrt-rtx"]["error"] == "BackendError: no kernel for this GPU"
    assert "failed: latency, tensorrt-rtx" in capsys.readouterr().out


def test_parts_can_be_selected(replaced_parts: None, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert cli.main(["--json", str(out), "--only", "kernel", "im"]) == 0
    assert list(json.loads(out.read_text())["parts"]) == ["kernel", "images"]


def test_a_command_returns_its_json_or_fails_with_its_output(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    code = f"open({str(out)!r}, 'w').write('[1, 2]')"
    assert command([sys.executable, "-c", code], out) == [1, 2]
    with pytest.raises(Failed, match=r"exit code 3\nlast words"):
        command([sys.executable, "-c", "print('last words'); raise SystemExit(3)"])


def test_the_parts_cover_every_backend(tmp_path: Path) -> None:
    names = [part.name for part in parts_.parts("sd-1.5", tmp_path, "8.9")]
    for backend in ("tensorrt-rtx", "onnxruntime-cuda"):
        for what in ("export shapes", "images", "export", "verify", "latency", "50 steps"):
            assert f"{what}, {backend}" in names


def test_fifty_steps_as_one_launch_and_step_by_step(tiny_engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, driver = host_engine(tiny_engine_dir)
    monkeypatch.setattr(images, "load", lambda *about: engine)
    monkeypatch.setattr(images, "_ROUNDS", 2)
    made = images.fifty_steps(tiny_engine_dir, "onnxruntime-cuda")
    for way in ("one_launch", "step_by_step"):
        taken = made[way]
        assert taken["first_s"] > 0 and taken["image_s"] > taken["denoising_s"] > 0
    # PNDM makes 51 evaluations; two runs are one launch each.
    assert driver.count["launch"] == 2 + 2 * 51


def test_tensorrt_is_checked_if_installed_with_and_without_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(parts_, "command", lambda words, *more: ran.append(list(words)))
    for installed in (None, object()):
        monkeypatch.setattr(parts_, "find_spec", lambda name, installed=installed: installed)
        parts = {part.name: part for part in parts_.parts("sd-1.5", tmp_path, "9.0")}
        assert ("images, tensorrt --full-unet-plan" in parts) == ("latency, tensorrt" in parts) == bool(installed)
    parts["export, tensorrt"].run()
    parts["export, tensorrt --full-unet-plan"].run()
    split, full = ran
    assert "--full-unet-plan" in full and "--full-unet-plan" not in split and split[-1] != full[-1]


def test_without_a_gpu_there_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> nvidia.Nvidia:
        raise BackendError("there is no NVIDIA driver; install one")

    monkeypatch.setattr(nvidia, "find", none)
    assert cli.main([]) == 1
    assert capsys.readouterr().err == "gpu_check: error: there is no NVIDIA driver; install one\n"
