"""The uncut UNet in an engine directory: the steps with gammas of zero run it, and compute the same."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from helpers.tiny import call_inputs, relative

import ebca
from ebca.engines import manifest as manifests
from ebca.errors import EngineError
from ebca.export.checkpoint import Checkpoint
from ebca.export.engine import export_checkpoint
from ebca.export.tiny import build_tiny
from ebca.runtime.executor import Executor


@pytest.fixture(scope="module")
def float32_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = Checkpoint(name="tiny", unet=build_tiny().unet)
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp("vanilla") / "engine", with_vanilla=True)


@pytest.fixture(scope="module", params=["float32_dir", "tiny_gpu_dir"])
def directory(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def executor(engine: ebca.Engine, contexts: int) -> Executor:
    made = engine.executor({"batch": 2, "contexts": contexts, "tokens": 77, "height": 8, "width": 8})
    sample, embeddings = call_inputs(contexts=contexts, size=(8, 8))
    made.sample[...], made.contexts[...], made.timestep[...] = sample, embeddings, 300
    return made


def test_a_step_without_update_is_one_call_with_the_same_result(directory: Path) -> None:
    with ebca.load(directory, backend="onnxruntime") as engine:
        made = executor(engine, 1)
        assert len(made.calls("attention")) == 1 < len(made.calls("update"))
        made.run("attention")
        whole, contexts = made.noise.copy(), made.contexts_out.copy()
        # Looking on the way needs the steps of the plan.
        made.run("attention", lambda layer, q, k: None)
        half = engine.manifest.compute == "fp16"
        assert whole.any() and relative(whole, made.noise) <= (2e-3 if half else 2e-6)
        assert np.array_equal(contexts, made.contexts) and np.array_equal(contexts, made.contexts_out)


def test_several_contexts_need_the_cuts(directory: Path) -> None:
    with ebca.load(directory, backend="onnxruntime") as engine:
        made = executor(engine, 2)
        assert len(made.calls("attention")) == len(engine.manifest.unet.plan)


def test_its_error_is_measured_at_export(directory: Path) -> None:
    manifest = manifests.read(directory)
    assert manifest.unet.vanilla == "vanilla"
    assert 0 < manifest.parity["vanilla"] <= (1e-2 if manifest.compute == "fp16" else 1e-4)


def test_a_manifest_whose_uncut_unet_is_another_is_refused(directory: Path, tmp_path: Path) -> None:
    data = json.loads((directory / manifests.FILE_NAME).read_text())
    data["unet"]["vanilla"] = data["unet"]["plan"][0]["segment"]
    (tmp_path / manifests.FILE_NAME).write_text(json.dumps(data))
    with pytest.raises(EngineError, match="has other inputs and outputs than the plan"):
        manifests.read(tmp_path)
