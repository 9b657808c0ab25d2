"""`shapes` as a directory for GPUs, made by the command of the docs with the real builder of TensorRT for RTX."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorrt_rtx_bindings")

import ebca
from ebca.engines.contract.directory import open_directory
from ebca.engines.contract.plans import resolve
from ebca.export.cli.run import main as export
from ebca.runtime.cli.run import main as run

CHECKPOINT = Path(__file__).parents[2] / "examples" / "shapes" / "shapes"
RTX = "tensorrt-rtx"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "engine"
    words = ["--model", str(CHECKPOINT), "--output-dir", str(folder), "--backend", RTX, "--guidance-scale", "4"]
    assert export(words) == 0
    return folder


def test_every_part_has_a_plan_with_its_own_tensors(directory: Path) -> None:
    opened = open_directory(directory)
    opened.verify()
    manifest = opened.manifest
    built = manifest.plans[RTX]
    assert built.components.keys() == {*manifest.unet.segments, "text_encoder", "vae_decoder", "vae_encoder"}
    for name, (plan,) in built.components.items():
        component = manifest.components[name]
        assert plan.inputs == resolve(component.inputs, plan.sizes)
        assert plan.outputs == resolve(component.outputs, plan.sizes)
        assert (directory / plan.file).stat().st_size > 10_000


def test_its_images_are_those_of_float32(directory: Path) -> None:
    images = []
    for engine in ("shapes", directory):
        with ebca.load(engine, backend="onnxruntime") as opened, opened.session() as session:
            result = session.generate("a red circle and a blue square", steps=20, seed=1, gamma_norm=0.003)
        images.append(np.asarray(result.images[0], np.float64) / 255)
    psnr = -10 * np.log10(np.mean((images[0] - images[1]) ** 2))
    assert 45 <= psnr < 100


def test_on_the_cpu_its_backend_is_refused_in_one_line_with_the_alternative(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--engine", str(directory), "--prompt", "a red circle", "--output", str(tmp_path / "image.png")]
    assert run([*words, "--device", "cpu", "--backend", RTX]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs on an NVIDIA GPU" in line and "onnxruntime, openvino for the CPU" in line
    assert not list(tmp_path.iterdir())
