"""Comparing a backend with ONNX Runtime on the CPU, part by part."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from helpers.driver import host_engine

import ebca
from ebca.engines.backends.protocol import Runner
from ebca.engines.contract.accuracy import relative_l2
from ebca.engines.machine import nvidia
from ebca.errors import ParameterError
from ebca.export import cli as export_cli
from ebca.runtime.cli import doctor
from ebca.runtime.diagnostics.directory import check_verified
from ebca.runtime.diagnostics.verify import Difference, verify
from ebca.runtime.execution.inspection import step_name


@pytest.fixture(scope="module")
def reference(tiny_engine_dir: Path) -> ebca.Engine:
    return ebca.load(tiny_engine_dir, backend="onnxruntime")


def _parts(engine: ebca.Engine) -> list[str]:
    names = [step_name(step) for step in engine.manifest.unet.steps]
    return [*names, "text_encoder", "vae_decoder", "vae_encoder"]


def test_a_device_agrees_with_the_cpu_part_by_part(tiny_engine_dir: Path, reference: ebca.Engine) -> None:
    progress: list[tuple[int, int, str]] = []
    found = verify(host_engine(tiny_engine_dir)[0], reference, lambda *about: progress.append(about))
    assert [part.part for part in found] == _parts(reference)
    assert all(part.error == 0 and part.ok and part.limit == 1e-4 for part in found)
    assert progress == [(i, len(found), part.part) for i, part in enumerate(found)]


def test_the_parts_of_stable_diffusion_xl_are_compared(tiny_xl_dir: Path) -> None:
    with ebca.load(tiny_xl_dir, backend="onnxruntime") as reference:
        found = verify(host_engine(tiny_xl_dir)[0], reference)
        assert [part.part for part in found] == _parts(reference)
    assert all(part.error == 0 and part.ok for part in found)


def test_exactly_the_wrong_parts_are_reported(tiny_engine_dir: Path, reference: ebca.Engine) -> None:
    engine = host_engine(tiny_engine_dir)[0]
    open_runner = engine.runner

    class Off:
        """Runs a component and scales its outputs slightly."""

        def __init__(self, runner: Runner) -> None:
            self._runner = runner

        def workspace_bytes(self, inputs: object, outputs: object) -> int:
            return 0

        def bind(
            self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], workspace: int = 0, once: bool = False
        ) -> object:
            call = self._runner.bind(inputs, outputs, workspace)

            def wrong() -> None:
                call()
                for array in outputs.values():
                    array *= 1.001

            return wrong

    wrong = ("segment_03", "vae_decoder")

    def off(name: str, sizes: Mapping[str, int]) -> Any:
        return Off(open_runner(name, sizes)) if name in wrong else open_runner(name, sizes)

    engine.runner = off  # type: ignore[method-assign]
    found = {part.part: part for part in verify(engine, reference)}
    assert {name for name, part in found.items() if not part.ok} == set(wrong)
    assert found["segment_03"].error == pytest.approx(1e-3, rel=0.01)


def test_non_finite_results_are_never_ok() -> None:
    assert relative_l2(np.array([np.nan]), np.ones(1)) == np.inf
    assert not Difference("segment_00", np.inf, 1e-4).ok
    assert relative_l2(np.zeros(2), np.zeros(2)) == 0 and relative_l2(np.ones(2), np.zeros(2)) == 1


def test_comparing_an_engine_with_itself_or_with_another_directory_is_refused(
    tiny_engine_dir: Path, tiny_unet_dir: Path, reference: ebca.Engine
) -> None:
    with pytest.raises(ParameterError, match="name another backend"):
        verify(reference, reference)
    with pytest.raises(ParameterError, match="different engines"):
        verify(host_engine(tiny_unet_dir)[0], reference)


def test_the_doctor_compares_all_parts(tiny_engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    assert doctor.main(["--engine", str(tiny_engine_dir), "--backend", "openvino", "--verify"]) == 0
    assert "all 19 parts agree with onnxruntime on the CPU" in capsys.readouterr().out.replace("\n", " ")


def test_the_doctor_reports_every_part_that_differs(tiny_engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    parts = [Difference("segment_00", 1e-6, 1e-4), Difference("attention_00", 2e-2, 1e-4)]
    monkeypatch.setattr("ebca.runtime.diagnostics.verify.verify", lambda *about: parts)
    (finding,) = check_verified(tiny_engine_dir, "openvino")
    assert (finding.level, finding.topic) == ("problem", "verify")
    assert finding.text == "attention_00 differs from onnxruntime on the CPU by 2.0e-02 (relative L2, limit 1e-04)"


@pytest.mark.parametrize("argv", [["--verify"], ["--engine", "DIR", "--verify"]])
def test_verify_needs_an_engine_and_a_backend(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(argv) == 1
    assert "--verify needs --engine and a --backend other than onnxruntime" in capsys.readouterr().err


def test_an_export_can_verify_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    argv = ["--model", "tiny", "--output-dir", str(tmp_path / "engine"), "--backend", "openvino", "--verify"]
    assert export_cli.main(argv) == 0
    assert "ok: all 19 parts agree with onnxruntime on the CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--backend", "tensorrt-rtx"], "--verify needs an NVIDIA GPU"),
        (["--backend", "onnxruntime"], "give --backend"),
        (["--backend", "openvino", "--dry-run"], "--dry-run writes nothing"),
    ],
)
def test_an_export_refuses_an_impossible_verification_first(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nvidia, "find", lambda: nvidia.Nvidia("13.0", ()))
    argv = ["--model", "tiny", "--output-dir", str(tmp_path / "engine"), *argv, "--verify"]
    assert export_cli.main(argv) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
