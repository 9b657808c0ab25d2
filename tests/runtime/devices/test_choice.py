"""Which device an engine gets: "auto", and one clear line for everything that can be wrong with a GPU."""

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")

from helpers.derived import with_float16_between
from helpers.driver import pretend_gpus

import ebca
from ebca.engines.backends import onnxruntime_provider, tensorrt_library
from ebca.engines.backends import registry as backends
from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.contract.directory import BUNDLED, EngineDirectory, open_directory
from ebca.engines.contract.plans import LibraryPlans
from ebca.engines.machine import nvidia
from ebca.engines.machine.nvidia import Gpu
from ebca.errors import BackendError, ParameterError
from ebca.runtime.cli import run as cli
from ebca.runtime.devices import registry as devices
from ebca.runtime.devices import requirements
from ebca.runtime.devices.choice import DeviceChoice, choose

ADA = Gpu("NVIDIA RTX 4090", "8.9", 24 << 30)
HOPPER = Gpu("NVIDIA H200", "9.0", 140 << 30)
TURING = Gpu("Tesla T4", "7.5", 16 << 30)
OPTIONS = BackendOptions()


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory that computes in float16, by its manifest."""
    return with_float16_between(BUNDLED / "shapes", tmp_path_factory.mktemp("half") / "engine")


@pytest.fixture(scope="module")
def directory(half: Path) -> EngineDirectory:
    return open_directory(half)


@pytest.fixture(autouse=True)
def every_gpu_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def with_plans(directory: EngineDirectory, library: str = "tensorrt-rtx") -> EngineDirectory:
    plans = LibraryPlans("1.7.1", ("8.6", "8.9"), tensorrt_library.platform_name(), (), {})
    return replace(directory, manifest=replace(directory.manifest, plans={library: plans}))


def auto(directory: EngineDirectory) -> DeviceChoice:
    return choose(directory, "auto", None, OPTIONS)


# --- what auto is


def test_a_float32_directory_runs_on_the_cpu_and_imports_nothing_of_cuda() -> None:
    program = (
        "import sys, ebca\n"
        "with ebca.load('shapes') as engine: print(engine.device_choice)\n"
        "assert not {'cuda', 'nvidia', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "device: cpu (the engine directory computes in float32)\n"


@pytest.mark.parametrize(
    ("backend", "options", "reason"),
    [
        ("openvino", OPTIONS, "backend openvino runs on the CPU"),
        (None, BackendOptions(precision="bf16"), "precision bf16 is for the CPU"),
        (None, BackendOptions(threads=2), "a number of threads is for the CPU"),
    ],
)
def test_options_for_the_cpu_choose_the_cpu(
    directory: EngineDirectory,
    monkeypatch: pytest.MonkeyPatch,
    backend: str | None,
    options: BackendOptions,
    reason: str,
) -> None:
    pretend_gpus(monkeypatch, ADA)
    assert choose(directory, "auto", backend, options) == DeviceChoice("cpu", reason, backend)


def test_auto_is_the_gpu_if_everything_is_there(
    half: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events = pretend_gpus(monkeypatch, ADA)
    told: list[DeviceChoice] = []
    with caplog.at_level(logging.INFO, "ebca"), ebca.load(half, on_device=told.append) as engine:
        assert engine.device.name == "cuda:0" and engine.device.graphs is not None
        expected = DeviceChoice("cuda", "NVIDIA RTX 4090, onnxruntime-cuda", "onnxruntime-cuda")
        assert engine.device_choice == expected and told == [expected]
        assert "device: cuda (NVIDIA RTX 4090, onnxruntime-cuda)" in caplog.messages
        with engine.session() as session:
            image = session.generate("a red circle", steps=2, seed=1, output="np").images
    assert image.shape[-1] == 3 and events == ["open 0"]


def test_a_backend_for_gpus_is_a_gpu_and_never_the_cpu(
    half: Path, directory: EngineDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch, ADA)
    assert choose(directory, "auto", "onnxruntime-cuda", OPTIONS).device == "cuda"
    pretend_gpus(monkeypatch)
    with pytest.raises(BackendError, match="finds no GPU"):
        ebca.load(half, backend="onnxruntime-cuda")
    _full_memory(monkeypatch)
    with pytest.raises(BackendError, match="the weights of the UNet need"):
        ebca.load(half, backend="onnxruntime-cuda")


def test_a_backend_for_gpus_takes_no_option_for_the_cpu(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = backends.create_on_gpu
    events = pretend_gpus(monkeypatch, ADA)
    monkeypatch.setattr(backends, "create_on_gpu", create)
    with pytest.raises(ParameterError, match="precision and threads are for the CPU"):
        ebca.load(half, backend="onnxruntime-cuda", threads=2)
    assert events == ["open 0", "close 0"]


def test_plans_that_fit_are_used(directory: EngineDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, ADA)
    monkeypatch.setattr(tensorrt_library, "installed_version", lambda library: "1.7.1")
    assert auto(with_plans(directory)).reason == "NVIDIA RTX 4090, tensorrt-rtx"


def test_without_usable_plans_onnx_runtime_runs_the_graphs(
    directory: EngineDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch, ADA)
    monkeypatch.setattr(tensorrt_library, "installed_version", lambda library: None)
    planned = with_plans(directory)
    assert str(auto(planned)) == (
        "device: cuda (NVIDIA RTX 4090, onnxruntime-cuda; not tensorrt-rtx: tensorrt-rtx is not installed)"
    )
    # A device that was named gets what the directory was exported for, or an error.
    with pytest.raises(BackendError, match=r'tensorrt-rtx is not installed; run `pip install "ebca\[tensorrt-rtx\]"`'):
        choose(planned, "cuda", None, OPTIONS)
    pretend_gpus(monkeypatch, HOPPER)
    assert auto(planned).reason == (
        "NVIDIA H200, onnxruntime-cuda; not tensorrt-rtx: "
        "TensorRT for RTX cannot run on NVIDIA H200, which has compute capability 9.0"
    )


# --- what can be wrong: the same line on the CPU with auto, and as an error with cuda


def _no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> None:
        raise BackendError("there is no NVIDIA driver", "install one, or run on a machine with an NVIDIA GPU")

    monkeypatch.setattr(nvidia, "find", find)


def _no_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "installed_version", lambda package: None)


def _old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, ADA, cuda="12.8")


def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch)


def _hidden_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def _old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, TURING)


def _no_cuda_in_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(cuda: str) -> str:
        raise BackendError("onnxruntime 1.31.1 is built without CUDA", "run `pip install onnxruntime-gpu`")

    monkeypatch.setattr(onnxruntime_provider, "check_provider", check)


def _full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, ADA, free=1_000_000)
    monkeypatch.setattr(requirements, "weight_bytes", lambda manifest, backend: 1_700_000_000)


def _broken_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*_: Any) -> None:
        raise BackendError("the library cannot be loaded", "install it again")

    monkeypatch.setattr(backends, "create_on_gpu", create)


CUBINS = "8.0, 8.6, 8.9, 9.0, 12.0, 12.1"
WRONG: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = {
    "no driver": (_no_driver, "", "there is no NVIDIA driver; install one, or run on a machine with an NVIDIA GPU"),
    "no bindings": (
        _no_bindings, "", 'cuda-bindings is not installed, and GPUs need it; run `pip install "ebca[gpu]"`'
    ),
    "old driver": (
        _old_driver, "",
        "the NVIDIA driver supports CUDA up to 12.8, cuda-bindings 13.5.0 needs CUDA 13; update the driver to version "
        "580 or newer",
    ),
    "no gpu": (
        _no_gpu, "",
        "the NVIDIA driver (CUDA up to 13.0) finds no GPU; check it with `nvidia-smi`, or use the CPU",
    ),
    "hidden gpu": (
        _hidden_gpu, "",
        "CUDA_VISIBLE_DEVICES is '', so the NVIDIA driver shows no GPU; unset it, or set it to the numbers of existing "
        "GPUs, such as 0",
    ),
    "old gpu": (
        _old_gpu, "",
        f"Tesla T4: no GPU kernel for compute capability 7.5; there are cubins for {CUBINS} and PTX for any GPU from "
        "8.0 on; use such a GPU, or the CPU",
    ),
    "no cuda in onnxruntime": (
        _no_cuda_in_onnxruntime, "NVIDIA RTX 4090 cannot be used: ",
        "onnxruntime 1.31.1 is built without CUDA; run `pip install onnxruntime-gpu`",
    ),
    "full memory": (
        _full_memory, "",
        "the weights of the UNet need 1.7 GB, and NVIDIA RTX 4090 has 0.0 GB of 25.8 GB free; close other programs "
        "that use the GPU (`nvidia-smi` lists them), or use the CPU",
    ),
    "broken library": (_broken_library, "", "the library cannot be loaded; install it again"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_the_reason_for_the_cpu_or_an_error(
    half: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    events = pretend_gpus(monkeypatch, ADA)
    breaks, subject, line = WRONG[name]
    breaks(monkeypatch)
    with ebca.load(half) as engine:
        assert engine.device.name == "cpu" and engine.backend.name == "onnxruntime"
        assert str(engine.device_choice) == f"device: cpu ({subject}{line})"
    with pytest.raises(BackendError) as error:
        ebca.load(half, "cuda")
    assert str(error.value) == line
    # Nothing stays open.
    assert events in ([], ["open 0", "close 0"] * 2)


def test_a_gpu_that_does_not_exist(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pretend_gpus(monkeypatch, ADA, HOPPER)
    with pytest.raises(BackendError) as error:
        ebca.load(half, "cuda:7")
    expected = "there is no GPU 'cuda:7'; choose from cuda:0 (NVIDIA RTX 4090), cuda:1 (NVIDIA H200)"
    assert str(error.value) == expected and events == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with pytest.raises(BackendError, match="CUDA_VISIBLE_DEVICES is '2,3'"):
        devices.create("cuda:7")


def test_a_head_size_without_a_kernel(directory: EngineDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pretend_gpus(monkeypatch, ADA)
    unet = directory.manifest.unet
    layers = (replace(unet.layers[0], name="down.0", head_dim=320), *unet.layers[1:])
    wide = replace(directory, manifest=replace(directory.manifest, unet=replace(unet, layers=layers)))
    line = r"no GPU kernel for head_dim 320, which 'down.0' has; there are kernels for .*; run this engine on the CPU"
    with pytest.raises(BackendError, match=line):
        choose(wide, "cuda", None, OPTIONS)
    assert auto(wide).device == "cpu" and events == []


def test_the_weights_of_the_segments_are_counted(directory: EngineDirectory) -> None:
    manifest = directory.manifest
    files = {f for name in manifest.unet.segments for f in manifest.components[name].files("onnxruntime-cuda")}
    on_disk = sum((directory.path / file).stat().st_size for file in files)
    assert requirements.weight_bytes(manifest, "onnxruntime-cuda") == on_disk > 1e6


def test_auto_needs_a_directory() -> None:
    with pytest.raises(ParameterError, match="device 'auto' depends on the engine directory"):
        devices.create("auto")


# --- the command line


def test_the_command_line_says_it_in_one_line(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_gpus(monkeypatch, ADA)
    call = ["--engine", str(half), "--prompt", "a red circle", "--steps", "2", "--output", str(tmp_path / "x.png")]
    lines = {}
    for more in ((), ("--device", "cpu"), ("--backend", "onnxruntime"), ("--threads", "2"), ("--quiet",)):
        assert cli.main([*call, *more]) == 0
        lines[more] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("prepar")]
    assert lines.pop(()) == ["device: cuda (NVIDIA RTX 4090, onnxruntime-cuda)"]
    assert lines.pop(("--threads", "2")) == ["device: cpu (a number of threads is for the CPU)"]
    # Nothing to say where the user has said it.
    assert all(said == [] for said in lines.values()), lines


def test_the_command_line_never_replaces_a_device_that_was_named(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_gpus(monkeypatch, ADA)
    _full_memory(monkeypatch)
    output = tmp_path / "x.png"
    call = ["--engine", str(half), "--prompt", "x", "--device", "cuda", "--output", str(output)]
    assert cli.main(call) == 1 and not output.exists()
    out, err = capsys.readouterr()
    assert out == "" and err == f"ebca-run: error: {WRONG['full memory'][2]}\n"
