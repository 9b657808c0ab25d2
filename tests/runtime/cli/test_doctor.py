"""ebca-doctor on healthy, damaged and missing engine directories, and clearing the cache."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.derived import with_float16_between
from helpers.driver import pretend_gpus

import ebca
from ebca.engines.backends import onnxruntime_provider, tensorrt_library
from ebca.engines.backends import registry as backends
from ebca.engines.contract.directory import BUNDLED, open_directory
from ebca.engines.contract.plans import LibraryPlans
from ebca.engines.machine import nvidia
from ebca.engines.machine.nvidia import Gpu, Nvidia
from ebca.errors import BackendError, NumericalError
from ebca.runtime.cli import doctor
from ebca.runtime.devices import requirements
from ebca.runtime.diagnostics import directory as directory_checks
from ebca.runtime.diagnostics import machine as machine_checks

Findings = list[dict[str, Any]]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    folder = tmp_path / "own-cache"
    monkeypatch.setenv("EBCA_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def engine_copy(tiny_unet_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_unet_dir, tmp_path / "engine"))


@pytest.fixture
def diagnose(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Findings]]:
    """Runs ebca-doctor with --json. Returns the exit code and the findings."""

    def run(*argv: str) -> tuple[int, Findings]:
        code = doctor.main([*argv, "--json"])
        report = json.loads(capsys.readouterr().out)
        assert report["ok"] is (code == 0)
        for finding in report["findings"]:
            assert set(finding) == {"level", "topic", "text", "remedy"}
            assert finding["level"] in ("ok", "note", "problem") and finding["text"]
            assert finding["level"] != "problem" or finding["remedy"]
        return code, report["findings"]

    return run


def _one(findings: Findings, topic: str, level: str) -> dict[str, Any]:
    (found,) = [f for f in findings if f["topic"] == topic and f["level"] == level]
    return found


def test_the_environment_is_checked(diagnose: Any) -> None:
    code, findings = diagnose()
    assert code == 0
    topics = [f["topic"] for f in findings]
    for topic in ("ebca", "onnxruntime", "openvino", "backend", "processor", "memory", "cache", "export"):
        assert topic in topics
    assert "onnxruntime" in _one(findings, "backend", "ok")["text"]


def test_it_needs_no_pytorch() -> None:
    program = (
        "import sys\nfrom ebca.runtime.cli.doctor import main\nmain([])\n"
        "assert not {'torch', 'diffusers', 'onnx'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_text_is_one_line_per_finding(capsys: pytest.CaptureFixture[str], own_cache: Path) -> None:
    assert doctor.main([]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("         ->")]
    assert lines[-1] == "no problems"
    assert all(line.startswith(("ok ", "note ")) for line in lines[:-1])
    assert f"'{own_cache}' holds 0 prepared engines" in "\n".join(lines)


def test_a_healthy_engine(diagnose: Any, tiny_engine_dir: Path, own_cache: Path) -> None:
    code, findings = diagnose("--engine", str(tiny_engine_dir), "--backend", "onnxruntime")
    assert code == 0
    assert _one(findings, "engine", "ok")["text"].startswith("tiny, text-to-image, weights fp32")
    assert "9 segments, 7 cross-attention layers, native size 128 x 128" in _one(findings, "contents", "ok")["text"]
    assert "from PyTorch" in _one(findings, "parity", "ok")["text"]
    assert _one(findings, "files", "ok")["text"].startswith("all ")
    assert "first use" in _one(findings, "prepared", "ok")["text"]
    assert "gave finite results" in _one(findings, "trial", "ok")["text"]

    _, again = diagnose("--engine", str(tiny_engine_dir), "--backend", "onnxruntime")
    assert _one(again, "prepared", "ok")["text"] == "ready for onnxruntime"


def test_a_unet_only_directory(diagnose: Any, tiny_unet_dir: Path) -> None:
    code, findings = diagnose("--engine", str(tiny_unet_dir), "--backend", "onnxruntime")
    assert code == 0
    assert "no text encoder, VAE, tokenizer" in _one(findings, "contents", "ok")["text"]


def test_every_damaged_file_is_named(diagnose: Any, engine_copy: Path) -> None:
    names = ["unet/segment_00.onnx", "unet/segment_02.onnx"]
    for name in names:
        data = bytearray((engine_copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (engine_copy / name).write_bytes(data)
    code, findings = diagnose("--engine", str(engine_copy))
    assert code == 1
    damaged = [f for f in findings if f["topic"] == "files" and f["level"] == "problem"]
    assert len(damaged) == 2
    for finding, name in zip(damaged, names, strict=True):
        assert name in finding["text"] and "export the engine again" in finding["remedy"]
    assert _one(findings, "trial", "note")["text"] == "skipped: the engine directory is damaged"


def test_a_missing_file_and_a_missing_engine(diagnose: Any, engine_copy: Path, tmp_path: Path) -> None:
    (engine_copy / "unet/segment_01.onnx").unlink()
    code, findings = diagnose("--engine", str(engine_copy))
    assert code == 1 and "segment_01.onnx" in _one(findings, "engine", "problem")["text"]

    code, findings = diagnose("--engine", str(tmp_path / "nowhere"))
    assert code == 1 and "ebca-export" in _one(findings, "engine", "problem")["remedy"]


def test_a_result_that_is_not_finite(diagnose: Any, tiny_unet_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*_: Any, **__: Any) -> None:
        raise NumericalError("the noise prediction is not finite, first in segment_03", "check the checkpoint")

    monkeypatch.setattr(ebca.Denoiser, "__call__", call)
    code, findings = diagnose("--engine", str(tiny_unet_dir), "--backend", "onnxruntime")
    assert code == 1
    assert "segment_03" in _one(findings, "trial", "problem")["text"]


def test_without_openvino(diagnose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "available", lambda: ["onnxruntime"])
    code, findings = diagnose()
    assert code == 0
    assert _one(findings, "openvino", "note")["remedy"] == 'run `pip install "ebca[openvino]"`'
    assert _one(findings, "backend", "ok")["text"] == "onnxruntime: the only one installed"


def test_a_requested_backend_that_is_missing(diagnose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "openvino" else object())
    code, findings = diagnose("--backend", "openvino")
    assert code == 1
    assert _one(findings, "backend", "problem")["remedy"] == 'run `pip install "ebca[openvino]"`'


def test_without_the_export_packages(diagnose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "find_spec", lambda name: None if name == "torch" else object())
    code, findings = diagnose()
    assert code == 0
    assert "torch not installed" in _one(findings, "export", "note")["text"]


def test_an_unwritable_cache(diagnose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    _, findings = diagnose()
    found = _one(findings, "cache", "note")
    assert "is not writable" in found["text"] and "EBCA_CACHE_DIR" in found["remedy"]


def test_a_cache_limit_that_is_not_a_number(diagnose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBCA_CACHE_LIMIT_GB", "plenty")
    code, findings = diagnose()
    assert code == 1 and "'plenty'" in _one(findings, "cache", "problem")["text"]


def test_clear_cache_deletes_prepared_engines_and_nothing_else(
    own_cache: Path, tiny_unet_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--engine", str(tiny_unet_dir), "--backend", "onnxruntime"]) == 0
    assert any(own_cache.iterdir())
    (own_cache / "notes.txt").write_text("mine")
    # A similar name is not enough to be deleted.
    (own_cache / "onnxruntime-notes").mkdir()
    capsys.readouterr()
    assert doctor.main(["--clear-cache"]) == 0
    assert capsys.readouterr().out.startswith("freed ")
    assert sorted(p.name for p in own_cache.iterdir()) == ["notes.txt", "onnxruntime-notes"]
    assert machine_checks.clear_cache() == (0, 0)


def test_json_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["ok"] is True
    assert capsys.readouterr().out.endswith("no problems\n")


# --- GPUs and plans


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Simulates a machine with these GPUs; without any, there is no driver."""

    def pretend(*gpus: Gpu) -> None:
        def find() -> Nvidia:
            if not gpus:
                raise BackendError("there is no NVIDIA driver", "install one")
            return Nvidia("13.0", gpus)

        monkeypatch.setattr(nvidia, "find", find)

    return pretend


def test_gpus_are_listed_and_their_absence_is_not_a_problem(diagnose: Any, machine: Callable[..., None]) -> None:
    machine()
    code, findings = diagnose()
    assert code == 0 and _one(findings, "gpu", "note")["remedy"] == "install one"
    machine(Gpu("RTX 4090", "8.9", 24 << 30))
    code, findings = diagnose()
    assert code == 0
    assert _one(findings, "gpu", "ok")["text"].startswith("RTX 4090, compute capability 8.9, 25.8 GB; driver for CUDA")
    machine()
    code, findings = diagnose("--backend", "tensorrt-rtx")
    assert code == 1 and _one(findings, "gpu", "problem")


def test_plans_without_a_gpu(diagnose: Any, machine: Callable[..., None], tiny_gpu_dir: Path) -> None:
    machine()
    code, findings = diagnose("--engine", str(tiny_gpu_dir))
    assert code == 0
    text = _one(findings, "plans", "ok")["text"]
    assert "for tensorrt-rtx 1." in text and "compute capability 8.6, 8.9, " in text and "width 8 or batch" in text
    assert "use --backend onnxruntime" in _one(findings, "plans", "note")["remedy"]
    assert "gave finite results" in _one(findings, "trial", "ok")["text"]
    code, findings = diagnose("--engine", str(tiny_gpu_dir), "--backend", "tensorrt-rtx")
    assert code == 1 and "no NVIDIA GPU found" in _one(findings, "plans", "problem")["text"]
    assert _one(findings, "trial", "note")["text"].startswith("skipped")


def test_plans_on_gpus_that_fit_and_that_do_not(
    diagnose: Any, machine: Callable[..., None], tiny_gpu_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = Gpu("RTX 4090", "8.9", 24 << 30)
    machine(ada)
    code, findings = diagnose("--engine", str(tiny_gpu_dir))
    assert code == 0
    assert any(f["text"].startswith("they fit RTX 4090; its runtime cache holds 0 of them") for f in findings)
    machine(Gpu("H100", "9.0", 80 << 30))
    code, findings = diagnose("--engine", str(tiny_gpu_dir))
    problem = _one(findings, "plans", "problem")
    assert code == 1
    assert problem["text"] == "TensorRT for RTX cannot run on H100, which has compute capability 9.0"
    assert problem["remedy"] == "use --backend onnxruntime-cuda"
    # Installed, and of no use here, whatever the engine directory.
    assert _one(findings, "tensorrt-rtx", "note")["text"] == problem["text"]
    machine(ada)
    monkeypatch.setattr(tensorrt_library, "installed_version", lambda library: None)
    _, findings = diagnose("--engine", str(tiny_gpu_dir))
    assert _one(findings, "plans", "note")["text"] == "tensorrt-rtx is not installed"


def test_a_directory_without_plans_for_the_requested_backend(
    diagnose: Any, machine: Callable[..., None], tiny_unet_dir: Path
) -> None:
    machine()
    code, findings = diagnose("--engine", str(tiny_unet_dir), "--backend", "tensorrt-rtx")
    assert code == 1
    assert _one(findings, "plans", "problem")["text"] == "this engine directory has no plans for tensorrt-rtx"


# --- the device that programs choose


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A directory that computes in float16, by its manifest."""
    pytest.importorskip("onnx")
    return with_float16_between(BUNDLED / "shapes", tmp_path / "half")


def test_it_says_what_auto_is(diagnose: Any, machine: Callable[..., None]) -> None:
    machine(Gpu("RTX 4090", "8.9", 24 << 30))
    _, findings = diagnose("--engine", "shapes")
    assert _one(findings, "device", "ok")["text"] == "auto is cpu: the engine directory computes in float32"
    _, findings = diagnose("--engine", "shapes", "--backend", "onnxruntime")
    assert _one(findings, "device", "ok")["text"] == "auto is cpu: backend onnxruntime runs on the CPU"


def test_a_gpu_that_auto_does_not_use_is_worth_a_note(
    diagnose: Any, machine: Callable[..., None], half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    code, findings = diagnose("--engine", str(half))
    assert code == 0 and "auto is cpu: there is no NVIDIA driver" in _one(findings, "device", "ok")["text"]

    def check(cuda: str) -> str:
        raise BackendError("onnxruntime 1.31.1 is built without CUDA", "install the other one")

    machine(Gpu("RTX 4090", "8.9", 24 << 30))
    monkeypatch.setattr(requirements, "installed_version", lambda package: "13.0.0")
    monkeypatch.setattr(onnxruntime_provider, "check_provider", check)
    code, findings = diagnose("--engine", str(half))
    assert code == 0
    assert _one(findings, "device", "note")["text"].startswith(
        "auto is cpu: RTX 4090 cannot be used: onnxruntime 1.31.1"
    )
    assert _one(findings, "onnxruntime-cuda", "note")["remedy"] == "install the other one"
    assert "by onnxruntime on cpu gave finite results" in _one(findings, "trial", "ok")["text"]


def test_the_trial_runs_where_auto_runs(diagnose: Any, half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, Gpu("RTX 4090", "8.9", 24 << 30))
    code, findings = diagnose("--engine", str(half))
    assert code == 0
    assert _one(findings, "device", "ok")["text"] == "auto is cuda: RTX 4090, onnxruntime-cuda"
    assert "by onnxruntime-cuda on cuda:0 gave finite results" in _one(findings, "trial", "ok")["text"]
    # What only opening can tell.
    pretend_gpus(monkeypatch, Gpu("RTX 4090", "8.9", 24 << 30), free=1000)
    code, findings = diagnose("--engine", str(half))
    assert code == 0 and _one(findings, "device", "ok")["text"].startswith("auto is cuda")
    assert _one(findings, "device", "note")["text"].startswith("auto becomes cpu: the weights of the UNet need")
    assert "by onnxruntime on cpu" in _one(findings, "trial", "ok")["text"]


def test_the_trial_has_a_size_that_the_plans_have() -> None:
    manifest = open_directory("shapes").manifest
    sizes = {"batch": (2, 4, 4), "height": (64, 96, 128), "width": (64, 64, 64), "contexts": (1, 1, 4)}
    built = LibraryPlans("1.7.1", ("8.9",), "linux-x86_64", (sizes,), {})
    planned = replace(manifest, plans={"tensorrt-rtx": built})
    sample, given = directory_checks._trial_inputs(planned, "tensorrt-rtx")
    assert sample.shape == (4, 4, 96, 64) and given["contexts"].shape[:2] == (4, 1)
    sample, given = directory_checks._trial_inputs(planned, "onnxruntime-cuda")
    assert sample.shape == (2, 4, 8, 8) and given["contexts"].shape[:2] == (2, 1)


def test_an_engine_of_stable_diffusion_xl(diagnose: Any, tiny_xl_dir: Path) -> None:
    code, findings = diagnose("--engine", str(tiny_xl_dir), "--backend", "onnxruntime")
    assert code == 0
    assert "native size 128 x 128; two text encoders" in _one(findings, "contents", "ok")["text"]
    assert "gave finite results" in _one(findings, "trial", "ok")["text"]


def test_a_gpu_without_what_it_needs(
    diagnose: Any, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(Gpu("Tesla T4", "7.5", 16 << 30))
    monkeypatch.setattr(requirements, "installed_version", lambda package: "13.0.0")
    _, findings = diagnose()
    assert "Tesla T4: no GPU kernel for compute capability 7.5" in _one(findings, "gpu", "note")["text"]
    code, findings = diagnose("--backend", "onnxruntime-cuda")
    assert code == 1 and "PTX for any GPU from 8.0 on" in _one(findings, "gpu", "problem")["remedy"]
