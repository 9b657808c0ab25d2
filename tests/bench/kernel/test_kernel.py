"""The kernel benchmark without a GPU: the PyTorch contenders, the checks, and the refusals."""

import json
import shutil
from pathlib import Path

import pytest

from ebca.bench.kernel.cli import main
from ebca.bench.kernel.layer import Layer
from ebca.bench.kernel.tune import candidates
from ebca.engines.contract.accuracy import KERNEL_LIMITS, UNFUSED_FACTOR
from ebca.errors import BackendError
from ebca.plugins import compile as ahead
from ebca.plugins.energy_attention.launches import OpShape

SHAPE = OpShape(batch=2, positions=96, contexts=1, tokens=77, heads=2, head_dim=40)


@pytest.mark.parametrize("dtype", KERNEL_LIMITS)
def test_the_pytorch_contenders_compute_the_operator(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    layer = Layer(torch, dtype, SHAPE, device="cpu")
    layer.check("sdpa", layer.sdpa, KERNEL_LIMITS[dtype])
    layer.check("unfused", layer.unfused, KERNEL_LIMITS[dtype] * UNFUSED_FACTOR)


def test_a_wrong_result_is_not_timed() -> None:
    torch = pytest.importorskip("torch")
    layer = Layer(torch, "float16", SHAPE, device="cpu")
    with pytest.raises(BackendError, match=r"off, .*: out is off by .*; nothing was timed"):
        layer.check("off", lambda: {"out": layer.sdpa()["out"] * 1.01}, KERNEL_LIMITS["float16"])
    with pytest.raises(BackendError, match="off by inf"):
        layer.check("untouched", lambda: {"g": layer.tensors["g"]}, KERNEL_LIMITS["float16"])


def test_bytes_and_flops_follow_from_the_equations() -> None:
    torch = pytest.importorskip("torch")
    nbytes, flops = Layer(torch, "float16", SHAPE, device="cpu").work(step=True)
    q, k = 2 * 96 * 80, 2 * 77 * 80
    assert nbytes == 2 * (2 * q + 2 * k) + 4 * k
    assert flops == 3 * 2 * q * 77


def test_candidates_include_the_block_sizes_in_use() -> None:
    tuning = json.loads(ahead.TUNING.read_text(encoding="utf-8"))
    tried, others = list(candidates()), ("positions_from", "several", "guided")
    for widths in tuning.values():
        for entry in (entry for entries in widths.values() for entry in entries):
            blocks = {name: value for name, value in entry.items() if name not in others}
            assert {"EAGER": 0, "max_registers": 255, **blocks} in tried


def test_without_a_gpu_there_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA driver")
    assert main(["--json", str(tmp_path / "x.json")]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert "no NVIDIA driver" in printed.err or "pip install" in printed.err
    assert not (tmp_path / "x.json").exists()
