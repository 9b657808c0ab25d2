"""ebca-bench latency on the tiny model: what it measures, compares and refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.driver import host_engine
from rich.console import Console

from ebca.bench import cli, timing
from ebca.bench.latency import compare
from ebca.bench.latency import measure as measuring
from ebca.bench.latency.compare import USUAL, parse_rows
from ebca.bench.latency.measure import Settings, measure
from ebca.bench.latency.report import print_report, to_json
from ebca.bench.latency.subject import Subject
from ebca.runtime.devices.cuda import CudaDevice
from ebca.runtime.engine import load

QUICK = ["--warmup", "1", "--repeats", "2", "--steps", "5"]
KEYS = {
    "stages", "compare", "ratios", "open_s", "peak_rss_mb", "engine", "device", "versions", "settings", "errors",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _short_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SETTLE_SECONDS", 0.005)


def _bench(tmp_path: Path, *argv: str) -> dict[str, Any]:
    file = tmp_path / "result.json"
    assert cli.main([*argv, *QUICK, "--json", str(file)]) == 0
    data: dict[str, Any] = json.loads(file.read_text())
    for group in (data["stages"], data["compare"]):
        for times in group.values():
            assert set(times) == {"p50_ms", "p90_ms"} and 0 < times["p50_ms"] <= times["p90_ms"]
    assert all(ratio > 0 for ratio in data["ratios"].values())
    return data


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_stages_of_a_complete_model(
    backend: str, tiny_engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(backend)
    data = _bench(tmp_path, "--engine", str(tiny_engine_dir), "--backend", backend)
    assert KEYS <= set(data) <= KEYS | {"prepare_s"}
    assert set(data["stages"]) == {
        "text_encoder", "unet_first_step", "unet_step", "unet_step_vanilla", "scheduler", "vae", "total",
    }  # fmt: skip
    assert data["compare"] == {} and set(data["ratios"]) == {"unet_step/unet_step_vanilla"}
    assert data["open_s"] > 0 and data["peak_rss_mb"] > 10
    assert {"ebca", "python", backend} <= set(data["versions"])
    settings = data["settings"]
    assert (settings["backend"], settings["precision"], settings["evaluations"]) == (backend, "fp32", 6)
    assert (settings["height"], settings["width"], settings["batch_size"]) == (128, 128, 1)
    stages = {name: times["p50_ms"] for name, times in data["stages"].items()}
    expected = stages["text_encoder"] + stages["vae"] + 6 * (stages["unet_step"] + stages["scheduler"])
    assert stages["total"] == pytest.approx(expected)
    text = capsys.readouterr().out
    assert "extrapolated: 5 steps of pndm, 6 evaluations" in text and "peak RSS" in text and "arena" in text


def test_a_unet_only_directory_has_no_text_encoder_and_no_vae(
    tiny_unet_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["latency", "--engine", str(tiny_unet_dir), "--height", "64", "--width", "96", "--batch-size", "2"]
    data = _bench(tmp_path, *argv)
    assert not {"text_encoder", "vae"} & set(data["stages"])
    assert (data["settings"]["height"], data["settings"]["width"], data["settings"]["batch_size"]) == (64, 96, 2)
    assert "UNet only: no text_encoder and no vae" in capsys.readouterr().out


def test_opening_is_measured_after_preparation(
    tiny_unet_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "cache"))
    argv = ["--engine", str(tiny_unet_dir), "--backend", "onnxruntime"]
    first = _bench(tmp_path, *argv)
    assert first["prepare_s"] > 0
    assert "preparing" in capsys.readouterr().err
    assert "prepare_s" not in _bench(tmp_path, *argv)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_compare_with_pytorch_and_the_full_unet(
    backend: str, tiny_engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(backend)
    pytest.importorskip("torch")
    from ebca.bench.latency import full_unet

    graphs = []
    make = full_unet.full_unet_graph

    def keep(unet: Any) -> Any:
        graph = make(unet)
        assert [v.name for v in graph.inputs] == ["sample", "timestep", "contexts"]
        assert [v.name for v in graph.outputs] == ["noise", "contexts_out"]
        copy = graph.outputs[1].producer()
        assert copy.op_type == "Identity" and copy.inputs[0] is graph.inputs[2]
        # No energy update: standard operators, one self-attention and one cross-attention per layer.
        assert not [n for n in graph if n.domain]
        assert sum(n.op_type == "Attention" for n in graph) == 14
        graphs.append(graph)
        return graph

    monkeypatch.setattr(full_unet, "full_unet_graph", keep)
    argv = ["--engine", str(tiny_engine_dir), "--backend", backend, "--compare", "--model", "tiny"]
    data = _bench(tmp_path, *argv)
    assert len(graphs) == 1
    assert list(data["compare"]) == list(USUAL)
    assert {f"unet_step/{row}" for row in USUAL} < set(data["ratios"])
    for pair in ("unet_step/pytorch_ebca", "unet_step_vanilla/pytorch_sdpa", "one_piece/pytorch_sdpa"):
        assert data["errors"][pair] < 1e-5
    assert {"torch", "diffusers"} <= set(data["versions"])
    assert data["settings"]["peak_rss_comparable"] is False  # the test run itself has loaded PyTorch


def test_stable_diffusion_xl_is_compared(tiny_xl_dir: Path, tmp_path: Path) -> None:
    data = _bench(tmp_path, "--engine", str(tiny_xl_dir), "--backend", "onnxruntime", "--compare", "--model", "tiny-xl")
    for pair in ("unet_step/pytorch_ebca", "unet_step_vanilla/pytorch_sdpa", "one_piece/pytorch_sdpa"):
        assert data["errors"][pair] < 1e-5


def test_compare_with_some_rows(tiny_unet_dir: Path, tmp_path: Path) -> None:
    rows = "pytorch_ebca, pytorch_sdpa"
    argv = ["--engine", str(tiny_unet_dir), "--compare-with", rows, "--model", "tiny"]
    assert list(_bench(tmp_path, *argv)["compare"]) == ["pytorch_sdpa", "pytorch_ebca"]


def test_the_full_unet_has_two_names() -> None:
    assert (
        parse_rows("full_unet, pytorch_sdpa") == parse_rows("one_piece,pytorch_sdpa") == ("one_piece", "pytorch_sdpa")
    )


def test_compare_with_compiled_pytorch(tiny_unet_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    compile_ = torch.compile
    # Real compilation takes a minute; this only shows that the UNet is captured as one graph.
    monkeypatch.setattr(torch, "compile", lambda module, mode: compile_(module, backend="eager", fullgraph=True))
    argv = ["--engine", str(tiny_unet_dir), "--compare-with", "pytorch_ebca_compiled", "--model", "tiny"]
    data = _bench(tmp_path, *argv)
    assert list(data["compare"]) == ["pytorch_ebca_compiled"]
    assert data["errors"]["pytorch_ebca_compiled/pytorch_ebca"] < 1e-5


def test_a_failed_compilation_is_one_clear_line(
    tiny_unet_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    compile_ = torch.compile

    def broken(graph: object, example: object) -> None:
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", lambda module, mode: compile_(module, backend=broken))
    argv = ["--engine", str(tiny_unet_dir), "--compare-with", "pytorch_ebca_compiled", "--model", "tiny"]
    assert cli.main([*argv, *QUICK]) == 1
    assert "torch.compile does not work here" in capsys.readouterr().err


def test_segments_are_timed_one_by_one(tiny_unet_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = _bench(tmp_path, "--engine", str(tiny_unet_dir), "--segments")
    names = list(data["segments"])
    assert names[:3] == ["time_embedding", "segment_00", "attention_00"] and names[-1] == "segment_07"
    assert len(names) == 9 + 7
    # Together they are the step, except for the time between them.
    total = sum(times["p50_ms"] for times in data["segments"].values())
    assert 0.2 < total / data["stages"]["unet_step"]["p50_ms"] < 5
    assert "all attention" in capsys.readouterr().out


def test_the_memory_and_the_launches_of_a_gpu(tiny_engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = host_engine(tiny_engine_dir)
    monkeypatch.setattr(measuring, "load", lambda *args, **kwargs: made)
    monkeypatch.setattr(CudaDevice, "description", lambda self: "a GPU")
    report = measure(Settings(tiny_engine_dir, device="cuda", warmup=0, repeats=2, segments=True))
    assert set(report.device_memory) == {"engines", "arena", "scratch", "control"}
    assert sum(report.device_memory.values()) == pytest.approx(made.device.used_bytes(), rel=0.5)
    assert "scheduler" not in report.stages and report.stages["graph_launch"].p50 > 0
    data = to_json(report)
    assert data["device_memory_mb"]["arena"] > 0 and "graph_launch" in data["stages"]
    print_report(report, Console(width=140))


def test_pytorch_weights_are_rounded_if_the_engine_stores_float16(tiny_engine_fp16_dir: Path, tmp_path: Path) -> None:
    argv = ["--engine", str(tiny_engine_fp16_dir), "--compare-with", "pytorch_ebca", "--model", "tiny"]
    assert _bench(tmp_path, *argv)["errors"]["unet_step/pytorch_ebca"] < 1e-5


def test_the_thread_count_of_pytorch_is_restored(tiny_unet_dir: Path) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    settings = Settings(tiny_unet_dir, threads=1, warmup=0, repeats=1, compare=["pytorch_sdpa"], model="tiny")
    assert measure(settings).subject.threads == 1
    assert torch.get_num_threads() == before


def _wrong(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    right = getattr(Subject, method)
    monkeypatch.setattr(Subject, method, lambda self: right(self) * np.float32(1.001))


@pytest.mark.parametrize("method", ["step", "plain_step"])
def test_a_wrong_result_is_not_timed(
    method: str,
    tiny_unet_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _wrong(monkeypatch, method)
    file = tmp_path / "result.json"
    assert cli.main(["--engine", str(tiny_unet_dir), "--json", str(file)]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("ebca-bench: error: zero_gamma differs from unet_step_vanilla")
    assert captured.out == "" and not file.exists()


def test_a_result_that_is_not_finite_is_not_timed(
    tiny_unet_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Subject.step
    monkeypatch.setattr(Subject, "step", lambda self: right(self) * np.float32(np.nan))
    assert cli.main(["--engine", str(tiny_unet_dir)]) == 1
    assert "unet_step is not finite" in capsys.readouterr().err


def test_both_steps_wrong_alike_is_found_by_comparison(
    tiny_unet_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("step", "plain_step"):
        _wrong(monkeypatch, method)
    argv = ["--engine", str(tiny_unet_dir), "--compare-with", "pytorch_sdpa", "--model", "tiny"]
    assert cli.main(argv) == 1
    assert "unet_step differs from pytorch_ebca by 1.0e-03" in capsys.readouterr().err


def test_another_checkpoint_is_found(tiny_unet_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from ebca.export.checkpoint.tiny import save_tiny

    save_tiny(tmp_path / "other", seed=1)
    save_tiny(tmp_path / "inpaint", in_channels=9)
    argv = ["--engine", str(tiny_unet_dir), "--compare", "--model"]
    assert cli.main([*argv, str(tmp_path / "other")]) == 1
    assert "--model is what it was exported from" in capsys.readouterr().err
    assert cli.main([*argv, str(tmp_path / "inpaint")]) == 1
    assert "another UNet than the engine, which was exported from" in capsys.readouterr().err


def test_bf16_has_its_own_limit(tiny_unet_dir: Path) -> None:
    with load(tiny_unet_dir, backend="onnxruntime") as engine:
        subject = Subject(
            engine, height=None, width=None, batch_size=1, gamma_attn=0.01, gamma_norm=0.02,
            precision="bf16", threads=1,
        )  # fmt: skip
        assert subject.compare("a", np.full(4, 1.01, np.float32), "b", np.ones(4, np.float32)) > 1e-4


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--compare"], "--compare needs --model"),
        (["--compare-with", "jax", "--model", "tiny"], "choose from pytorch_sdpa, pytorch_ebca, one_piece"),
        (["--repeats", "0"], "--repeats is 0; give 1 or more"),
        (["--warmup", "-1"], "--warmup is -1; give 0 or more"),
        (["--batch-size", "0"], "--batch-size is 0; give 1 or more"),
        (["--steps", "333"], "the nearest stored count is"),
        (["--height", "60"], "height is 60"),
        (["--gamma-attn", "nan"], "gamma_attn"),
        (["--backend", "onnxruntime", "--precision", "bf16"], "precision 'bf16'"),
    ],
)
def test_senseless_options_are_refused(
    argv: list[str], text: str, tiny_unet_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--engine", str(tiny_unet_dir), *argv]) == 1
    err = capsys.readouterr().err.strip()
    assert text in err and err.splitlines()[-1].startswith("ebca-bench: error: ")


def test_compare_without_pytorch_says_how_to_install_it(
    tiny_unet_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "find_spec", lambda name: None if name == "torch" else object())
    assert cli.main(["--engine", str(tiny_unet_dir), "--compare", "--model", "tiny"]) == 1
    expected = 'ebca-bench: error: --compare needs torch; run `pip install "ebca[export]"`\n'
    assert capsys.readouterr().err == expected


def test_pytorch_is_not_loaded_without_compare(tiny_unet_dir: Path) -> None:
    program = (
        "import sys\nfrom ebca.bench.cli import main\n"
        f"assert main(['--engine', {str(tiny_unet_dir)!r}, '--repeats', '1']) == 0\n"
        "assert not {'torch', 'diffusers', 'onnx'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "not comparable" not in done.stdout


def test_help_has_examples_and_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0 and "ebca-bench --engine engine-sd15 --compare" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 2
