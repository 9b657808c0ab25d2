"""The full UNet in an engine directory, without updates for steps whose gammas are zero, and with updates for a plan.
Both compute what the segments compute."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx
from helpers import manifests as stamping
from helpers import trt
from helpers.driver import host_device
from helpers.launcher import FakeLauncher
from helpers.tiny import call_inputs, relative
from onnx import TensorProto

import ebca
from ebca.engines.backends import registry as backends
from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.contract import dims
from ebca.engines.contract import manifest as manifests
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.contract.plans import LibraryPlans
from ebca.errors import BackendError, EngineError, ParameterError
from ebca.export import cli
from ebca.export.api import export_checkpoint
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.tiny import build_tiny
from ebca.export.options import ExportOptions
from ebca.export.plans import tensorrt
from ebca.export.plans.jobs import jobs
from ebca.export.plans.shapes import PlanOptions, fixed
from ebca.export.stages import plans
from ebca.export.workspace import Workspace
from ebca.plugins.energy_attention import signature
from ebca.plugins.energy_attention.launches import EnergyAttention
from ebca.plugins.energy_attention.tensorrt_plugin import register
from ebca.plugins.kernels.binaries import KernelSet
from ebca.plugins.kernels.launch import KernelLibrary
from ebca.runtime.devices.device import Device
from ebca.runtime.diagnostics.verify import verify
from ebca.runtime.engine import Engine
from ebca.runtime.execution.control import ControlArrays, resolve
from ebca.runtime.execution.executor import Executor
from ebca.runtime.execution.inspection import run_probed

CONTROLS = ["weights", "gamma_attn", "gamma_norm", "norm_factor", "tie"]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full-unet") / request.param
    options = ExportOptions(request.param, request.param, with_full_unet=True, with_full_unet_updates=True)
    return export_checkpoint(Checkpoint(name="tiny", unet=build_tiny().unet), folder, options)


@pytest.fixture(scope="module")
def engine(directory: Path) -> Iterator[ebca.Engine]:
    with ebca.load(directory, backend="onnxruntime") as engine:
        yield engine


def executor(engine: ebca.Engine, contexts: int, whole: str | None = None, device: Device | None = None) -> Executor:
    sizes = {"batch": 2, "contexts": contexts, "tokens": 77, "height": 8, "width": 10}
    made = Executor(engine.manifest.unet, engine.runner, sizes, device or engine.device, whole)
    sample, embeddings = call_inputs(contexts=contexts, size=(8, 10))
    made.sample[...], made.contexts[...], made.timestep[...] = sample, embeddings, 300
    return made


def limit(engine: ebca.Engine) -> float:
    return 2e-3 if engine.manifest.compute == "fp16" else 2e-6


# --- without updates


def test_a_step_without_update_is_one_call_with_the_same_result(engine: ebca.Engine) -> None:
    made = executor(engine, 1)
    assert len(made.calls("attention")) == 1 < len(made.calls("update"))
    made.run("attention")
    whole, contexts = made.noise.copy(), made.contexts_out.copy()
    # A callback per layer needs the schedule of segments.
    run_probed(made, "attention", lambda layer, q, k: None)
    assert whole.any() and relative(whole, made.noise) <= limit(engine)
    assert np.array_equal(contexts, made.contexts) and np.array_equal(contexts, made.contexts_out)


def test_several_contexts_need_the_cuts(engine: ebca.Engine) -> None:
    made = executor(engine, 2)
    assert len(made.calls("attention")) == len(engine.manifest.unet.steps)


@pytest.mark.parametrize("name", ["vanilla", "whole"])
def test_its_error_is_measured_at_export(directory: Path, name: str) -> None:
    manifest = manifests.read(directory)
    field = {"vanilla": "full_unet", "whole": "full_unet_with_updates"}[name]
    assert getattr(manifest.unet, field) == name
    assert 0 < manifest.parity[name] <= (1e-2 if manifest.compute == "fp16" else 1e-4)


@pytest.mark.parametrize(
    ("name", "other"), [("vanilla", "segment_00"), ("vanilla", "whole"), ("whole", "vanilla"), ("whole", "segment_00")]
)
def test_a_manifest_that_names_another_component_as_full_unet_is_refused(
    directory: Path, tmp_path: Path, name: str, other: str
) -> None:
    data = stamping.load(directory)
    data["unet"][name] = other
    stamping.write(tmp_path, data)
    with pytest.raises(EngineError, match=f"the full UNet '{other}' has the tensors"):
        manifests.read(tmp_path)


def test_an_older_manifest_has_none(directory: Path, tmp_path: Path) -> None:
    data = stamping.load(directory)
    del data["unet"]["whole"], data["unet"]["vanilla"]
    stamping.write(tmp_path, data)
    assert manifests.read(tmp_path).unet.full_unet_with_updates is None


# --- with updates


def control(engine: ebca.Engine, made: Executor, **values: Any) -> ControlArrays:
    return resolve(ebca.EnergyControl(**values), engine.manifest.unet.layers, made.sizes)


def knobs(contexts: int) -> dict[str, Any]:
    """Every control away from its default: up-weighted tokens, a negative weight, the paper's norm term, tied rows."""
    gamma_attn = np.linspace(0.01, 0.06, 77)
    gamma_attn[5] *= 3
    weights = np.array([1.0, -0.4, 0.7])[:contexts]
    return {"gamma_attn": gamma_attn, "gamma_norm": 0.3, "weights": weights, "norm_factor": 0.5}


@pytest.mark.parametrize("contexts", [1, 3])
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_the_full_unet_with_updates_computes_what_the_segments_compute(
    engine: ebca.Engine, where: str, contexts: int
) -> None:
    device = host_device()[0] if where == "cuda" else None
    split, whole = executor(engine, contexts), executor(engine, contexts, "whole", device)
    assert len(whole.calls("update")) == 1 < len(split.calls("update"))
    for change in ({}, {"gamma_norm": 0.0}, {"tie_unconditional": False}):
        for made in (split, whole):
            made.set_control(control(engine, made, **{**knobs(contexts), **change}))
            made.run("update")
        # The same arithmetic in both; no roundings more than those of float32.
        near = limit(engine) if engine.manifest.compute == "fp32" else 5e-4
        assert relative(whole.noise, split.noise) <= near
        # The change of the contexts, because they change little.
        moved = split.contexts_out - split.contexts
        assert np.abs(moved).max() > 1e-3
        assert relative(whole.contexts_out - whole.contexts, moved) <= near


def test_variants_that_the_full_unet_lacks_are_run_by_the_segments(engine: ebca.Engine) -> None:
    made = executor(engine, 1, "whole")
    steps = len(engine.manifest.unet.steps)
    assert {v: len(made.calls(v)) for v in ("attention", "update", "update_masked", "energies")} == {
        "attention": 1, "update": 1, "update_masked": steps, "energies": steps,
    }  # fmt: skip
    seen: list[int] = []
    made.set_control(control(engine, made, **knobs(1)))
    run_probed(made, "update", lambda layer, q, k: seen.append(layer))
    assert seen == list(range(len(engine.manifest.unet.layers)))


def planned(directory: Path, components: dict[str, Any]) -> Engine:
    """Opened as if ONNX Runtime had plans of these components."""
    manifest = manifests.read(directory)
    sizes = {"batch": 2, "contexts": 3, "tokens": 77, "height": 8, "width": 8}
    ranges = {name: (size, size, size) for name, size in sizes.items()}
    built = {"onnxruntime": LibraryPlans("1", ("8.9",), "linux", (ranges,), components)}
    backend = backends.create("onnxruntime", BackendOptions())
    precision = manifest.compute
    return Engine(EngineDirectory(directory, replace(manifest, plans=built)), backend, host_device()[0], precision)


def test_the_full_unet_with_updates_runs_if_the_backend_has_a_plan_of_it(directory: Path, engine: ebca.Engine) -> None:
    sizes = {"batch": 2, "contexts": 3, "tokens": 77, "height": 8, "width": 8}
    assert engine.full_unet_with_updates is None and len(engine.executor(sizes).calls("update")) > 1
    assert planned(directory, {"segment_00": ()}).full_unet_with_updates is None
    assert len(planned(directory, {"whole": ()}).executor(sizes).calls("update")) == 1


def test_verifying_runs_the_full_unet_with_updates_too(
    directory: Path, engine: ebca.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = planned(directory, {"whole": ()})
    found = verify(mine, engine)
    assert found[-1].part == "whole" and found[-1].ok and all(part.ok for part in found)
    assert len(found) == len(engine.manifest.unet.steps) + 1
    # A graph that computes something else instead.
    runner = mine.runner

    def forgetful(name: str, sizes: Mapping[str, int]) -> Any:
        return Forgetful(runner(name, sizes)) if name == "whole" else runner(name, sizes)

    monkeypatch.setattr(mine, "runner", forgetful)
    assert [part.part for part in verify(mine, engine) if not part.ok] == ["whole"]


class Forgetful:
    """Runs a component without its last control."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def workspace_bytes(self, inputs: Any, outputs: Any) -> int:
        return 0

    def bind(self, inputs: Any, outputs: Any, workspace: int = 0, once: bool = False) -> Any:
        return self._runner.bind({**inputs, "gamma_norm": np.zeros_like(inputs["gamma_norm"])}, outputs)


# --- its graph


def test_the_ops_are_nodes_that_tensorrt_maps_to_plugins(directory: Path) -> None:
    manifest = manifests.read(directory)
    component = manifest.components["whole"]
    model = onnx.load(directory / component.graph, load_external_data=False)
    registry, kernels = trt.Registry(), KernelSet.load()
    register(trt, registry, EnergyAttention(KernelLibrary(FakeLauncher(kernels), kernels)))
    nodes = [node for node in model.graph.node if node.domain == "ebca"]
    assert len(nodes) == len(manifest.unet.layers) and "ebca" in {o.domain for o in model.opset_import}
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.value_info)}
    stored = TensorProto.FLOAT16 if manifest.compute == "fp16" else TensorProto.FLOAT
    for node, layer in zip(nodes, manifest.unet.layers, strict=True):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        attributes = {n: v.decode() if isinstance(v, bytes) else v for n, v in attributes.items()}
        assert attributes["plugin_namespace"] == "ebca" and attributes["plugin_version"] == "1"
        plugin = registry.parse(node.op_type, attributes)
        shapes = [
            trt.DimsExprs(f"{n}.{i}" for i in range(len(s.shape))) for n, s in signature("update", 1, 1)[0].items()
        ]
        assert len(plugin.get_output_shapes(shapes, [], None)) == len(node.output) == 2
        assert plugin.timing_cache_id == f"update_h{layer.heads}_d{layer.head_dim}"
        assert list(node.input[3:]) == CONTROLS
        assert [types[name] for name in (*node.input, *node.output)] == [
            stored, stored, stored, *[TensorProto.FLOAT] * 5, stored, TensorProto.FLOAT,
        ]  # fmt: skip


def test_for_onnxruntime_it_has_standard_operators(directory: Path) -> None:
    component = manifests.read(directory).components["whole"]
    for graph in component.lowered.values():
        model = onnx.load(directory / graph, load_external_data=False)
        domains = {node.domain for node in model.graph.node}
        assert domains <= {"", "com.microsoft"} and "ebca" not in {o.domain for o in model.opset_import}
        names = [node.name for node in model.graph.node if node.name]
        assert len(names) == len(set(names))


# --- building its plan


def test_its_plan_takes_all_contexts_and_alone_needs_the_plugin(directory: Path) -> None:
    manifest = manifests.read(directory)
    options = PlanOptions("tensorrt", (fixed("1x64x64"),))
    work = {job.component: job for job in jobs(options, manifest.components, manifest.unet, None, None)}
    assert work["whole"].file == "plans/tensorrt/whole.b2_c1-4_t77_h8_w8.plan"
    assert [name for name, job in work.items() if job.with_op] == ["whole"]


def test_the_manifest_names_its_plan(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifests.read(directory)
    options = PlanOptions("tensorrt", (fixed("1x64x64"),))
    work = [j for j in jobs(options, manifest.components, manifest.unet, None, None) if j.with_op]
    component, flags = manifest.components["whole"], []

    class Builder:
        """Builds nothing and reports what it was asked for."""

        version = "11.4.0"

        def __init__(self, library: str, capabilities: Any, *, with_op: bool) -> None:
            flags.append(with_op)

        def own_capability(self) -> str:
            return "9.0"

        def build(self, graph: Path, inputs: Any, on_fraction: Any) -> tensorrt.Built:
            assert graph.name == "whole.onnx" and list(inputs) == list(component.inputs)
            given = {name: (component.inputs[name].dtype, wanted.fixed) for name, wanted in inputs.items()}
            assert given["tie"] == ("float32", (2, -1, -1)) and given["norm_factor"] == ("float32", ())
            made = {"noise": ("float32", (2, 4, 8, 8)), "contexts_out": ("float32", (2, -1, 77, 32))}
            return tensorrt.Built(memoryview(b"plan"), given, made)

    monkeypatch.setattr(plans, "Builder", Builder)
    workspace = Workspace(tmp_path / "engine", "key")
    shutil.copytree(directory / "unet", workspace.folder / "unet")
    built = plans.build(work, options, manifest.components, None, None, workspace, lambda text, done: None)
    assert flags == [True]
    files = {**manifest.files, work[0].file: workspace.record(work[0].file)}
    (tmp_path / manifests.FILE_NAME).write_text(
        replace(manifest, plans={"tensorrt": built}, files=files).to_json(), encoding="utf-8"
    )
    read = manifests.read(tmp_path).plans["tensorrt"]

    def shapes(contexts: int) -> dict[str, tuple[int, ...]]:
        sizes = {"batch": 2, "contexts": contexts, "tokens": 77, "height": 8, "width": 8}
        return {name: dims.shape(spec.shape, sizes) for name, spec in component.inputs.items()}

    assert read.find("whole", shapes(1)) == read.find("whole", shapes(4)) == built.components["whole"][0]
    with pytest.raises(EngineError, match="'whole' was built for batch 2, contexts 1 to 4"):
        read.find("whole", shapes(5))


def test_the_builder_registers_the_op_where_graphs_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, kernels = trt.Registry(), KernelSet.load()
    library = SimpleNamespace(**{name: getattr(trt, name) for name in dir(trt) if not name.startswith("_")})
    library.__name__, library.__version__ = "tensorrt", trt.__version__
    library.ILogger = type("ILogger", (), {"ERROR": 1})
    library.Builder = lambda log: SimpleNamespace(get_plugin_registry=lambda: registry)
    monkeypatch.setattr(tensorrt, "load_library", lambda name: library)
    monkeypatch.setattr(tensorrt, "CudaLauncher", lambda index: FakeLauncher(kernels, (9, index)))
    tensorrt.Builder("tensorrt")
    assert not registry.creators
    tensorrt.Builder("tensorrt", with_op=True)
    assert list(registry.creators) == [("EnergyCrossAttention", "1", "ebca")]
    del library.IPluginV3
    with pytest.raises(BackendError, match="takes no plugins"):
        tensorrt.Builder("tensorrt", with_op=True)


def test_tensorrt_for_rtx_and_other_backends_cannot_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    needs_tensorrt = "--full-unet-plan is about plans with a plugin inside; give --backend tensorrt"
    for more, said in (
        (
            ["--backend", "tensorrt-rtx"],
            "tensorrt-rtx takes no plugins, and --full-unet-plan needs one; give --backend tens",
        ),
        (["--backend", "onnxruntime-cuda"], needs_tensorrt),
        ([], needs_tensorrt),
    ):
        assert cli.main(["--model", "tiny", "--output-dir", "engine", "--full-unet-plan", *more]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error
    assert not list(tmp_path.iterdir())
    checkpoint = Checkpoint(name="tiny", unet=build_tiny().unet)
    options = PlanOptions("tensorrt-rtx", (fixed("1x64x64"),), ("8.9",))
    with pytest.raises(ParameterError, match="tensorrt-rtx takes no plugins, and with_full_unet_updates needs one"):
        export_checkpoint(
            checkpoint,
            tmp_path / "engine",
            precision="fp16",
            compute="fp16",
            plans=options,
            with_full_unet_updates=True,
        )
