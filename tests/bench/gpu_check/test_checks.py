"""What the parts measure, with a CUDA device on host memory or with replaced processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from helpers.driver import host_engine

from ebca.bench.gpu_check.checks import (
    accuracy,
    child,
    cpp,
    engines,
    kernels,
    memory,
    parts,
    plans,
    right,
    rivals,
    runs,
    steps,
    subjects,
    timing,
    variants,
)
from ebca.bench.gpu_check.results import Failed, Found, Skipped
from ebca.bench.gpu_check.visit import Visit
from ebca.bench.latency import measure as latency
from ebca.engines.contract.directory import open_directory
from ebca.engines.machine import nvidia
from ebca.runtime.engine import load

CHILD = {"open_s": 1.0, "first_image_s": 2.5, "process_s": 3.0, "image_s": 0.4, "denoising_s": 0.36}


@pytest.fixture
def visit(tmp_path: Path, tiny_engine_dir: Path) -> Visit:
    folder = tmp_path / "engines"
    folder.mkdir()
    for name in ("tiny", "model"):
        (folder / name).symlink_to(tiny_engine_dir)
    return Visit(output=tmp_path / "out", engines=folder, export=False, model=None, capability="9.0")


def on_host(monkeypatch: pytest.MonkeyPatch, module: Any, **settings: Any) -> list[Any]:
    """Replace `load` of a module; returns the drivers of the engines that it opens."""
    drivers: list[Any] = []

    def opened(engine: Path, device: str = "cpu", *more: Any, **options: Any) -> Any:
        if device == "cpu":
            return load(engine, device, *more)
        made, driver = host_engine(Path(engine), **settings)
        drivers.append(driver)
        return made

    monkeypatch.setattr(module, "load", opened)
    return drivers


def test_directories_run_and_are_captured(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    on_host(monkeypatch, runs)
    found = Found()
    runs.run(visit, found)
    for name in ("tiny", "model"):
        report = found.results[name]
        assert report["captured"] and report["update"]["finite"] and report["vanilla"]["finite"]


def test_stable_diffusion_xl_runs_and_is_captured(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, tiny_xl_dir: Path
) -> None:
    on_host(monkeypatch, runs)
    assert visit.engines is not None
    (visit.engines / "tiny-xl").symlink_to(tiny_xl_dir)
    found = Found()
    runs.run(visit, found)
    report = found.results["tiny-xl"]
    assert report["captured"] and report["update"]["finite"] and report["vanilla"]["finite"]


def test_a_directory_that_is_not_captured_is_a_failure(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    on_host(monkeypatch, runs, refuse_capture=True)
    with pytest.raises(Failed, match=r"tiny: not captured: .*not permitted when stream is capturing"):
        runs.run(visit, Found())
    report = {"captured": True, "update": {"finite": True}, "vanilla": {"finite": False}}
    assert runs.problems(report) == ["results of vanilla are not finite"]


def test_a_directory_that_does_not_open_does_not_hide_the_other(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_tiny(engine: Path, backend: str) -> dict[str, Any]:
        if engine.name == "model":
            raise Failed("no kernel")
        return {"captured": True, "warnings": [], "update": {"finite": True}, "vanilla": {"finite": True}}

    monkeypatch.setattr(runs, "try_directory", only_tiny)
    found = Found()
    with pytest.raises(Failed, match=r"^model: no kernel$"):
        runs.run(visit, found)
    assert found.results["tiny"]["captured"] and found.results["model"] == {"error": "Failed: no kernel"}


def test_fifty_steps_take_turns(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = on_host(monkeypatch, timing)
    monkeypatch.setattr(timing, "STEPS", 5)
    seen: list[set[str]] = []
    report = timing.fifty_steps(visit.engine("model"), "onnxruntime-cuda", 2, lambda report: seen.append({*report}))
    for way in ("one_launch", "step_by_step"):
        update, vanilla = report[way]["update"], report[way]["vanilla"]
        assert 0 < vanilla["denoising_s"] < vanilla["image_s"] and update["first_image_s"] > 0
    assert report["one_launch"]["update"]["denoising_s"]["target"] == 0.36
    assert report["one_launch"]["update_over_vanilla"]["target"] == 1.03
    assert report["step_by_step"]["update"]["denoising_s"] > 0
    assert seen == [{"settings", "one_launch", "step_by_step"}]
    # PNDM makes one evaluation more than it has steps; with and without updates, twice each.
    assert drivers[0].count["launch"] == 2 * (2 + 2 * 6)


def test_subjects_are_timed_in_turns_and_compared(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, shapes_dir: Path
) -> None:
    on_host(monkeypatch, subjects)
    on_host(monkeypatch, accuracy)
    monkeypatch.setattr(timing, "STEPS", 3)
    monkeypatch.setattr(accuracy, "_STEPS", 3)
    for name in ("model", "shapes"):
        (visit.engine("tiny").parent / name).unlink(missing_ok=True)
        (visit.engine("tiny").parent / name).symlink_to(shapes_dir)
    found = Found()
    subjects.run(visit, found)
    measured = found.results["times"]
    assert measured["with_over_without"]["target"] == 1.02 and measured["with_three_denoising_s"] > 0
    assert min(found.results["images"]["psnr_db"]) >= 40


def test_first_images_are_measured_with_cold_and_with_warm_caches(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[dict[str, str]] = []

    def measured(host: str, engine: Path, backend: str, environment: dict[str, str]) -> dict[str, float]:
        caches.append(environment)
        return CHILD

    monkeypatch.setattr(child, "measure", measured)
    found = Found()
    steps.first_images(visit.engine("model"), "onnxruntime-cuda", found)
    assert caches[0] == caches[1] and not Path(caches[0]["EBCA_CACHE_DIR"]).exists()
    assert found.results["cold_cache"]["first_image_s"] == {"value": 2.5, "target": 2.0, "met": False}


def test_a_process_that_fails_says_why(visit: Visit) -> None:
    with pytest.raises(Failed, match=r"exit code 1\n(?s:.*)NVIDIA driver"):
        child.measure("python", visit.engine("model"), "onnxruntime-cuda")


def test_provider_options_are_added_to_sessions_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(ort, "InferenceSession", lambda path, options, providers: given.append(providers))
    opened = child._add_options({"cudnn_conv_algo_search": "HEURISTIC"})
    ort.InferenceSession("a", None, providers=[("CUDAExecutionProvider", {"device_id": "0"})])
    ort.InferenceSession("b", None, providers=["CPUExecutionProvider"])
    changed = {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert given == [[("CUDAExecutionProvider", changed)], ["CPUExecutionProvider"]] and opened == ["a"]


def test_a_variant_that_fails_does_not_hide_the_other(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(host: str, engine: Path, backend: str, options: dict[str, str]) -> dict[str, float]:
        if options["cudnn_conv_algo_search"] == "HEURISTIC":
            raise Failed("out of memory")
        return CHILD

    monkeypatch.setattr(child, "measure", measured)
    found = Found()
    with pytest.raises(Failed, match="heuristic: out of memory"):
        variants.run(visit, found)
    assert found.results["exhaustive"] == CHILD


def test_the_c_library_is_compared_with_python(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBCA_CPP_LIB", "/absent/libebca.so")
    with pytest.raises(Skipped, match="does not exist"):
        cpp.run(visit, Found())
    monkeypatch.setattr(cpp, "find_library", lambda: Path("libebca.so"))
    slower = {**CHILD, "denoising_s": 0.72}
    monkeypatch.setattr(child, "measure", lambda host, *more: slower if host == "cpp" else CHILD)
    found = Found()
    cpp.run(visit, found)
    assert found.results["cpp_over_python"] == {"value": 2.0, "target": 1.03, "met": False}


def test_every_part_is_compared_with_the_cpu(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    on_host(monkeypatch, accuracy)
    report = accuracy.compare_parts(visit.engine("model"), "onnxruntime-cuda")
    assert {"segment_00", "attention_00", "text_encoder", "vae_decoder"} <= report["errors"].keys()
    assert max(report["errors"].values()) < report["limit"] == 1e-4
    monkeypatch.setattr(accuracy, "verify", lambda *engines: [_difference("segment_00", 2e-4)])
    with pytest.raises(Failed, match=r"above 1e-04: segment_00 2\.0e-04"):
        accuracy.compare_parts(visit.engine("model"), "onnxruntime-cuda")


def _difference(part: str, error: float) -> Any:
    from ebca.runtime.diagnostics.verify import Difference

    return Difference(part, error, 1e-4)


def test_noise_is_compared_with_pytorch(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(accuracy, "load", lambda engine, device, backend: load(engine))
    report = accuracy.compare_noise(visit.engine("model"), "onnxruntime-cuda", visit.checkpoint())
    assert 0 < report["unet_step/pytorch_ebca"] < report["limit"] == 1e-4


def test_images_are_compared_with_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = open_directory("shapes").path
    monkeypatch.setattr(accuracy, "_STEPS", 2)
    star = (("a yellow star", ()),)
    monkeypatch.setattr(accuracy, "load", lambda engine, device, backend: load(engine))
    assert accuracy.compare_images(shapes, "onnxruntime-cuda", star)["psnr_db"] == [120.0]
    psnr = np.float64("inf")
    monkeypatch.setattr(accuracy, "MIN_PSNR_DB", psnr)
    with pytest.raises(Failed, match=r"is \[120\.0\] dB, inf is wanted"):
        accuracy.compare_images(shapes, "onnxruntime-cuda", star)


def test_comparisons_go_on_after_a_failure_and_a_skip() -> None:
    def fail() -> None:
        raise Failed("too dark")

    def skip() -> None:
        raise Skipped("there is no engine directory")

    found = Found()
    with pytest.raises(Failed, match=r"^images: too dark$"):
        right.all_of(found, {"images": fail, "noise": skip, "parts": lambda: 1})
    assert found.results["parts"] == 1 and found.results["noise"] == {"skipped": "there is no engine directory"}
    with pytest.raises(Skipped):
        right.all_of(Found(), {"noise": skip})


def test_every_segment_and_op_is_timed(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = nvidia.Gpu("Test GPU", "9.0", 24 << 30)
    monkeypatch.setattr(nvidia, "find", lambda: nvidia.Nvidia("13.0", (gpu,)))
    on_host(monkeypatch, latency)
    # As in `ebca.load`, by keyword.
    opened = latency.load
    monkeypatch.setattr(latency, "load", lambda engine, device, **options: opened(engine, device))
    found = Found()
    parts.run(visit, found)
    times, sums = found.results["segments"], found.results["sums"]
    assert {"segment_00", "attention_00"} <= times.keys()
    assert sums["ops_ms"] + sums["segments_ms"] == pytest.approx(sum(row["p50_ms"] for row in times.values()))


def test_memory_is_told_by_purpose(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    on_host(monkeypatch, memory)
    found = Found()
    memory.run(visit, found)
    assert 0 < found.results["with_updates_gb"]["value"] <= found.results["and_without_gb"]
    assert found.results["with_updates_gb"]["target"] == 3.0
    assert {"engines", "arena", "control"} <= found.results["unet_by_purpose_mb"].keys()
    weights = sum(path.stat().st_size for path in visit.engine("model").rglob("*.data"))
    assert found.results["weights_gb"] == pytest.approx(weights / 1e9)


@pytest.mark.parametrize("model", ["tiny", "tiny-xl"])
def test_the_plain_unet_of_the_rivals(model: str) -> None:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        noise = rivals.PlainUNet(model, "cpu")()
    assert noise.shape == (2, 4, 16, 16) and noise.dtype == torch.float16 and torch.isfinite(noise).all()


def test_outcomes_of_the_kernel_tests_are_counted() -> None:
    text = "t.py::test_a[1-2] PASSED [ 1%]\nt.py::test_b[3] FAILED [ 2%]\nt.py::test_c SKIPPED (no GPU) [ 3%]\n"
    made = kernels.count(text)
    assert (made["passed"], made["failed"], made["skipped_tests"]) == (1, 1, 1) and made["output"] == text
    assert kernels.count("t.py::test_a PASSED [100%]\n") == {"passed": 1, "failed": 0, "skipped_tests": 0}


def test_kernel_tests_without_a_gpu_are_no_success(monkeypatch: pytest.MonkeyPatch, visit: Visit) -> None:
    monkeypatch.setattr(kernels, "_TESTS", ("tests/bench/gpu_check/absent.py",))
    assert kernels.run_tests(10) == {"skipped": "there is no tests/bench/gpu_check/absent.py"}
    monkeypatch.setattr(kernels, "run_tests", lambda seconds: {"passed": 0, "failed": 0})
    monkeypatch.setattr(kernels, "_benchmark", lambda: {})
    with pytest.raises(Failed, match="no kernel test ran"):
        kernels.run(visit, Found())


def test_exports_by_the_name_of_the_directory(visit: Visit, tmp_path: Path) -> None:
    def words(name: str) -> str:
        return " ".join(engines.export_words(visit, name, Path("out")))

    assert words("tiny") == "--model tiny --backend onnxruntime-cuda --output-dir out"
    assert words("tiny-xl") == "--model tiny-xl --backend onnxruntime-cuda --output-dir out"
    assert words("model") == "--model random-sd-1.5 --backend onnxruntime-cuda --output-dir out --with-full-unet"
    assert words("shapes-tensorrt-rtx").endswith("--backend tensorrt-rtx --output-dir out --compute-capability 9.0")
    assert words("model-tensorrt").endswith("--backend tensorrt --output-dir out --with-full-unet")
    full = words("model-tensorrt-full-unet-plan")
    assert "--backend tensorrt " in full and full.endswith("--with-full-unet --full-unet-plan")


def test_directories_are_unpacked_or_exported_or_left_out(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    made: list[str] = []
    monkeypatch.setattr(engines, "unpack", lambda file, target: made.append(f"unpack {target.name}"))
    monkeypatch.setattr(engines, "_export", lambda words: made.append(f"export {words[1]}"))
    monkeypatch.setattr(plans, "installed_version", lambda library: None)
    assert visit.engines is not None
    (visit.engines / "shapes.tar.xz").write_bytes(b"")
    (visit.engines / "model").unlink()
    wanted = replace(visit, wanted=("tiny", "shapes", "model", "model-tensorrt-rtx"))
    engines.run(wanted, Found())
    assert made == ["unpack shapes"], "nothing is exported unless asked for"
    made.clear()
    engines.run(replace(wanted, export=True), Found())
    assert made == ["unpack shapes", "export random-sd-1.5"], "no plans without their library"
