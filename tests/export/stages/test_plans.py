"""Plans of TensorRT for RTX, built for real: what is built, what the library says, what an interruption leaves."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorrt_rtx_bindings")

import tensorrt_rtx_bindings as trt

from ebca.engines.contract import manifest as manifests
from ebca.engines.contract.directory import open_directory
from ebca.engines.contract.plans import resolve
from ebca.errors import BackendError, ExportError, ParameterError
from ebca.export import cli
from ebca.export.plans.jobs import Job, jobs
from ebca.export.plans.shapes import ImageShape, PlanOptions, dynamic, fixed
from ebca.export.plans.tensorrt import Builder, InputRange, check_capabilities
from ebca.export.stages import plans
from ebca.export.workspace import Workspace

RTX = "tensorrt-rtx"


@pytest.fixture(scope="module")
def manifest(tiny_gpu_dir: Path) -> manifests.Manifest:
    return open_directory(tiny_gpu_dir).manifest


def all_jobs(manifest: manifests.Manifest, *shapes: ImageShape, contexts: int = 4) -> list[Job]:
    options = PlanOptions(RTX, shapes, ("8.9",), contexts)
    return jobs(options, manifest.components, manifest.unet, manifest.text_encoder, manifest.vae)


# --- what is built


def test_everything_but_the_ops_is_built_for_every_shape(tiny_gpu_dir: Path, manifest: manifests.Manifest) -> None:
    open_directory(tiny_gpu_dir).verify()
    built = manifest.plans[RTX]
    assert built.version == trt.__version__ and built.compute_capabilities == ("8.6", "8.9")
    assert [s["width"] for s in built.shapes] == [(8, 8, 8), (16, 16, 16)]
    assert manifest.unet.max_contexts == 4
    assert built.components.keys() == {*manifest.unet.segments, "vanilla", "text_encoder", "vae_decoder", "vae_encoder"}
    for name, entries in built.components.items():
        assert len(entries) == (1 if name in ("time_embedding", "text_encoder") else 2), name
    files = {plan.file for entries in built.components.values() for plan in entries}
    on_disk = {p.relative_to(tiny_gpu_dir).as_posix() for p in (tiny_gpu_dir / "plans").rglob("*.plan")}
    assert files == on_disk and files <= manifest.files.keys()


def test_plans_have_the_tensors_of_the_manifest(tiny_gpu_dir: Path, manifest: manifests.Manifest) -> None:
    """As far as a machine without a GPU can read one: its header is sound, and the names are in it."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    malformed = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    for name, entries in manifest.plans[RTX].components.items():
        component = manifest.components[name]
        for plan in entries:
            assert plan.inputs == resolve(component.inputs, plan.sizes)
            assert plan.outputs == resolve(component.outputs, plan.sizes)
            data = (tiny_gpu_dir / plan.file).read_bytes()
            header = data[: runtime.engine_header_size]
            assert not runtime.get_engine_validity(header)[1] & malformed
            assert runtime.get_engine_validity(bytes(reversed(header)))[1] & malformed
            for tensor in (*plan.inputs, *plan.outputs):
                assert tensor.encode() in data, (name, tensor)


def test_the_library_says_what_it_built(tiny_gpu_dir: Path, manifest: manifests.Manifest) -> None:
    component = manifest.components["segment_03"]
    (job,) = [j for j in all_jobs(manifest, dynamic(["1x64x64", "1x64x64", "2x64x128"])) if j.component == "segment_03"]
    seen: list[float] = []
    built = Builder(RTX, ("8.9",)).build(
        tiny_gpu_dir / component.graph,
        {name: plans.input_range(spec.shape, job.sizes) for name, spec in component.inputs.items()},
        seen.append,
    )
    assert len(built.plan) > 10_000
    assert seen == sorted(seen) and 0.5 < seen[-1] <= 1
    expected = resolve(component.outputs, job.sizes)
    assert built.outputs.keys() == expected.keys()
    for name, (dtype, shape) in built.outputs.items():
        assert dtype == expected[name].dtype
        assert shape == tuple(d if isinstance(d, int) else -1 for d in expected[name].shape), name


def test_shapes_share_what_does_not_differ(manifest: manifests.Manifest) -> None:
    one, two = fixed("1x64x64"), fixed("1x64x128")
    names = [job.component for job in all_jobs(manifest, one, two)]
    assert names.count("time_embedding") == names.count("text_encoder") == 1
    assert names.count("segment_00") == names.count("vae_decoder") == 2
    assert len({job.file for job in all_jobs(manifest, one, two)}) == len(names)
    assert len(all_jobs(manifest, one, one)) == len(all_jobs(manifest, one))
    (segment,) = [j for j in all_jobs(manifest, fixed("3x64x128"), contexts=1) if j.component == "segment_02"]
    assert segment.file == "plans/tensorrt-rtx/segment_02.b6_c1_t77_h8_w16.plan"


# --- interrupted, and what cannot be built


class Stop(Exception):
    """Raised by a progress callback."""


def test_a_finished_plan_is_kept_and_a_damaged_one_built_again(
    tiny_gpu_dir: Path, manifest: manifests.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = all_jobs(manifest, fixed("1x64x64"))[:3]
    options = PlanOptions(RTX, (fixed("1x64x64"),), ("8.9",))
    partial = tmp_path / "engine.partial"
    Workspace(tmp_path / "engine", "key").put_files("start", [], {})
    shutil.copytree(tiny_gpu_dir / "unet", partial / "unet")

    def build(stop: str = "-") -> list[str]:
        workspace, made = Workspace(tmp_path / "engine", "key"), []
        real = Builder.build

        def record(self: Builder, graph: Path, *args: Any) -> Any:
            made.append(graph.stem)
            return real(self, graph, *args)

        def progress(text: str, done: int) -> None:
            if stop in text:
                raise Stop

        try:
            with monkeypatch.context() as patch:
                patch.setattr(Builder, "build", record)
                plans.build(
                    work, options, manifest.components, manifest.text_encoder, manifest.vae, workspace, progress
                )
        finally:
            workspace.release()
        return made

    with pytest.raises(Stop):
        build(stop="plan 3 of 3")
    done = json.loads((partial / "progress.json").read_text())["done"]
    assert len(done) == 3 and len(list(partial.rglob("*.plan"))) == 2
    damaged = partial / work[1].file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert build() == [work[1].component, work[2].component]
    assert build() == []


def test_what_progress_raises_ends_the_build(tiny_gpu_dir: Path, manifest: manifests.Manifest) -> None:
    component = manifest.components["segment_07"]
    (job,) = [j for j in all_jobs(manifest, fixed("1x64x64")) if j.component == "segment_07"]
    ranges = {name: plans.input_range(spec.shape, job.sizes) for name, spec in component.inputs.items()}
    calls: list[float] = []

    def stop(part: float) -> None:
        calls.append(part)
        raise KeyboardInterrupt

    builder = Builder(RTX, ("8.9",))
    with pytest.raises(KeyboardInterrupt):
        builder.build(tiny_gpu_dir / component.graph, ranges, stop)
    assert len(calls) == 1
    assert len(builder.build(tiny_gpu_dir / component.graph, ranges).plan) > 10_000


def test_a_graph_that_cannot_be_built_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"tensorrt-rtx 1\.\S+ cannot build 'x\.onnx': .+; please report") as caught:
        Builder(RTX, ("8.9",)).build(tmp_path / "x.onnx", {"x": InputRange((1,), (1,), (1,))})
    assert "\n" not in str(caught.value)


def test_other_tensors_than_the_manifests_are_refused(manifest: manifests.Manifest) -> None:
    from ebca.export.plans.tensorrt import Built

    (job,) = [j for j in all_jobs(manifest, fixed("1x64x64")) if j.component == "time_embedding"]
    plan = plans._plan(job, manifest.components["time_embedding"])
    outputs = {name: (spec.dtype, tuple(spec.shape)) for name, spec in plan.outputs.items()}
    inputs: dict[str, Any] = {"timestep": ("float32", (2,))}
    plans.check_built(plan, Built(memoryview(b""), inputs, outputs))
    with pytest.raises(ExportError, match=r"has timestep as \('float16', \(2,\)\) instead of \('float32', \(2,\)\)"):
        plans.check_built(plan, Built(memoryview(b""), {"timestep": ("float16", (2,))}, outputs))


# --- options


def test_compute_capabilities() -> None:
    assert check_capabilities(RTX, []) == ("8.6", "8.9", "12.0")
    assert check_capabilities(RTX, ["12.0", "8.9", "8.9"]) == ("8.9", "12.0")
    with pytest.raises(
        ParameterError, match=r"builds nothing for compute capability '9\.0'.*--backend onnxruntime-cuda"
    ):
        check_capabilities(RTX, ["9.0"])
    with pytest.raises(ParameterError, match=r"builds for compute capability 7\.5 alone"):
        check_capabilities(RTX, ["7.5", "8.9"])
    with pytest.raises(ParameterError, match="builds for this machine's GPU only"):
        check_capabilities("tensorrt", ["8.9"])


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--shape", "1x64x64"], "--shape is about plans; give --backend tensorrt-rtx or tensorrt too"),
        (["--backend", "onnxruntime-cuda", "--max-contexts", "2"], "--max-contexts is about plans"),
        (["--vae-fp32"], "--vae-fp32 is about float16 directories"),
        (["--backend", RTX, "--precision", "fp32"], "stores weights as float16; leave --precision fp32 out"),
        (["--backend", RTX, "--shape", "64x64"], "shape '64x64' is not IMAGESxHEIGHTxWIDTH"),
        (["--backend", RTX, "--shape", "1x64x65"], "shape '1x64x65' needs one image or more, of sides"),
        (["--backend", RTX, "--shape", "0x64x64"], "shape '0x64x64' needs one image or more"),
        (["--backend", RTX, "--dynamic", "1x64x64", "1x32x64", "1x96x96"], "the heights 64, 32, 96 of a range"),
        (["--backend", RTX, "--shape", "1x64x64", "--dynamic", *["1x64x64"] * 3], "exclude each other"),
        (["--backend", RTX, "--max-contexts", "0"], "--max-contexts is 0; give 1 or more"),
        (["--backend", RTX, "--compute-capability", "9.0"], "builds nothing for compute capability '9.0'"),
        (["--backend", "tensorrt"], "tensorrt is not installed; run `pip install tensorrt`"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if "tensorrt" in more:
        monkeypatch.setattr("ebca.engines.backends.tensorrt_library.find_spec", lambda name: None)
    assert cli.main(["--model", "tiny", "--output-dir", "engine", *more]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and named in err
    assert not list(tmp_path.iterdir())


def test_a_library_that_needs_a_gpu_is_found_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        __version__ = "11.0"

        class ILogger:
            ERROR = 1

        @staticmethod
        def Builder(log: Any) -> Any:
            log.log(1, "CUDA initialization failure with error: 35\nmore")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr("ebca.export.plans.tensorrt.load_library", lambda name: Library)
    with pytest.raises(
        BackendError, match=r"found none here \(CUDA initialization failure with error: 35\); build there"
    ):
        Builder("tensorrt")
