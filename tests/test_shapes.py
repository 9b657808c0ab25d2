"""The bundled model end to end: its images equal those of PyTorch, and they show what the prompt says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ebca
from ebca.bench.alignment.detector import read
from ebca.bench.alignment.measure import Method, Settings, measure
from ebca.bench.alignment.scenes import parse
from ebca.engines.contract.directory import BUNDLED, bundled

PIPELINE = Path(__file__).parents[1] / "examples" / "shapes" / "shapes"
PROMPT = "a red circle and a blue square"


def test_the_model_is_small_enough_to_bundle() -> None:
    assert "shapes" in bundled()
    assert sum(file.stat().st_size for file in (BUNDLED / "shapes").rglob("*")) <= 26e6
    assert sum(file.stat().st_size for file in PIPELINE.rglob("*")) <= 12e6


def test_the_first_command_shows_the_prompt(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ebca.runtime.cli.run", "--engine", "shapes", "--prompt", PROMPT, "--seed", "1"]
    command += ["--backend", "onnxruntime", "--output", str(tmp_path / "out.png")]
    subprocess.run(command, check=True, capture_output=True)
    assert read(np.asarray(Image.open(tmp_path / "out.png")), parse(PROMPT)).all_present


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_images_equal_those_of_pytorch(backend: str) -> None:
    """PSNR of at least 50 dB, a mean error below one of 255 levels."""
    pytest.importorskip(backend)
    torch = pytest.importorskip("torch")
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(3)
    wanted = pipeline(PROMPT, num_inference_steps=50, guidance_scale=4, generator=noise, output_type="np").images
    with ebca.load("shapes", backend=backend) as engine, engine.session() as session:
        made = session.generate(PROMPT, steps=50, seed=3, output="np").images
    error = np.square(made - wanted).mean()
    assert 10 * np.log10(1 / error) >= 50


def test_images_show_what_the_prompt_says() -> None:
    """Ten points below the shares measured on hundreds of prompts (docs/alignment.md), for 24 images."""
    settings = Settings(kinds=("one", "two"), count=24, batch=12)
    with ebca.load("shapes", backend="onnxruntime") as engine:
        found = measure(engine, (Method("base"),), settings).results["base"]
    assert found["one"].vector("all").mean() >= 0.85
    assert found["two"].vector("all").mean() >= 0.7
