"""The benchmark of the GPU kernels, as far as it goes without a GPU: the PyTorch sides, and how it refuses."""

import json
import shutil
from pathlib import Path

import pytest

from ebca.bench import kernel as bench
from ebca.errors import BackendError
from ebca.plugins import compile as ahead
from ebca.plugins.energy_attention.launches import OpShape

SHAPE = OpShape(batch=2, positions=96, contexts=1, tokens=77, heads=2, head_dim=40)


@pytest.mark.parametrize("dtype", bench.LIMITS)
def test_the_pytorch_contenders_compute_the_operator(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    layer = bench.Layer(torch, dtype, SHAPE, device="cpu")
    layer.check("sdpa", layer.sdpa, bench.LIMITS[dtype])
    layer.check("unfused", layer.unfused, bench.LIMITS[dtype] * bench.UNFUSED)


def test_a_wrong_result_is_not_timed() -> None:
    torch = pytest.importorskip("torch")
    layer = bench.Layer(torch, "float16", SHAPE, device="cpu")
    with pytest.raises(BackendError, match=r"off, .*: out is off by .*; nothing was timed"):
        layer.check("off", lambda: {"out": layer.sdpa()["out"] * 1.01}, bench.LIMITS["float16"])
    with pytest.raises(BackendError, match="off by nan"):
        layer.check("untouched", lambda: {"g": layer.tensors["g"]}, bench.LIMITS["float16"])


def test_bytes_and_flops_are_those_of_the_equations() -> None:
    torch = pytest.importorskip("torch")
    nbytes, flops = bench.Layer(torch, "float16", SHAPE, device="cpu").work(step=True)
    q, k = 2 * 96 * 80, 2 * 77 * 80
    assert nbytes == 2 * (2 * q + 2 * k) + 4 * k
    assert flops == 3 * 2 * q * 77


def test_candidates_are_what_the_compiler_takes_and_hold_the_present_choice() -> None:
    tuning = json.loads(ahead.TUNING.read_text(encoding="utf-8"))
    candidates = list(bench.candidates())
    for entries in tuning["default"].values():
        for entry in entries:
            assert {name: value for name, value in entry.items() if name != "positions_from"} in candidates


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA driver")
    assert bench.main(["--json", str(tmp_path / "x.json")]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert "no NVIDIA driver" in printed.err or "pip install" in printed.err
    assert not (tmp_path / "x.json").exists()
