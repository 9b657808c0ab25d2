"""LoRAs with PEFT, and textual inversions, in diffusers' pipeline: the same noise predictions and embeddings.

Tolerance 1e-5 on values around 1: both sum the same products in float32, in another order; 3e-6 was observed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import loras
from helpers.tiny import call_inputs

import ebca

torch = pytest.importorskip("torch")
pytest.importorskip("peft", reason="diffusers loads LoRAs with peft, which is not installed")

TOLERANCE = 1e-5
PROMPT = "a photo of a red cat"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from diffusers import StableDiffusionPipeline
    from helpers.pipelines import tiny_pipeline

    return tiny_pipeline(StableDiffusionPipeline, tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def unchanged(pipeline: Any) -> Iterator[Any]:
    yield pipeline
    pipeline.unload_lora_weights()


def tensors(style: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The LoRA without what diffusers drops with transformers 5: attention of a text encoder in kohya's style."""
    found = loras.tensors(style, seed)
    return {name: value for name, value in found.items() if style == "diffusers" or "q_proj" not in name}


def results_of(pipeline: Any, prompt: str) -> tuple[np.ndarray, np.ndarray]:
    """(embeddings [1,T,D], noise [2,C,h,w])."""
    sample, contexts = call_inputs()
    with torch.no_grad():
        embeddings = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
        noise = pipeline.unet(torch.from_numpy(sample), torch.tensor(500), torch.from_numpy(contexts[:, 0])).sample
    return embeddings.numpy(), noise.numpy()


def ours(engine: ebca.Engine, prompt: str) -> tuple[np.ndarray, np.ndarray]:
    sample, contexts = call_inputs()
    embeddings = engine.encode(engine.tokenizer.encode([prompt]).ids).contexts
    return embeddings, ebca.Denoiser(engine)(sample, 500, contexts).noise


def compare(engine: ebca.Engine, pipeline: Any, prompt: str = PROMPT) -> None:
    for name, found, expected in zip(
        ("embeddings", "noise"), ours(engine, prompt), results_of(pipeline, prompt), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("style", ["diffusers", "diffusers-old", "kohya"])
def test_loras(tiny_engine_dir: Path, unchanged: Any, tmp_path: Path, style: str) -> None:
    path = loras.write(tmp_path / "a.safetensors", tensors(style))
    plain = results_of(unchanged, PROMPT)
    unchanged.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="a")
    unchanged.set_adapters(["a"], [0.6])
    changed = results_of(unchanged, PROMPT)
    assert all(np.abs(one - other).max() > 0.05 for one, other in zip(plain, changed, strict=True))
    with ebca.load(tiny_engine_dir, lora=f"{path}:0.6") as engine:
        compare(engine, unchanged)


def test_two_loras(tiny_engine_dir: Path, unchanged: Any, tmp_path: Path) -> None:
    paths = [loras.write(tmp_path / f"{seed}.safetensors", tensors("kohya", seed)) for seed in (0, 1)]
    for index, path in enumerate(paths):
        unchanged.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name=str(index))
    unchanged.set_adapters(["0", "1"], [0.5, -0.25])
    with ebca.load(tiny_engine_dir, lora=[(paths[0], 0.5), (paths[1], -0.25)]) as engine:
        compare(engine, unchanged)


def test_a_file_that_peft_and_diffusers_wrote(tiny_engine_dir: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from helpers.pipelines import tiny_pipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = tiny_pipeline(StableDiffusionPipeline, tmp_path / "tiny")
    torch.manual_seed(0)
    # The alpha of such a file stands in its metadata.
    config = {"r": 4, "lora_alpha": 10}
    for model, modules in (
        (pipeline.unet, ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv_shortcut"]),
        (pipeline.text_encoder, ["q_proj", "out_proj", "fc2"]),
    ):
        model.add_adapter(LoraConfig(**config, target_modules=modules, init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(pipeline.text_encoder),
        weight_name="a.safetensors",
        unet_lora_adapter_metadata=config,
        text_encoder_lora_adapter_metadata=config,
    )
    with ebca.load(tiny_engine_dir, lora=tmp_path / "a.safetensors") as engine:
        found, expected = ours(engine, PROMPT), results_of(pipeline, PROMPT)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * max(1, np.abs(other).max()))


def test_textual_inversions(tiny_engine_dir: Path, pipeline: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {"<toy>": rng.standard_normal(32, np.float32), "<mood>": rng.standard_normal((3, 32), np.float32)}
    paths = [
        loras.write(tmp_path / f"{index}.safetensors", {name: value})
        for index, (name, value) in enumerate(values.items())
    ]
    pipeline.load_textual_inversion([str(path) for path in paths])
    with ebca.load(tiny_engine_dir, embedding=paths) as engine:
        for prompt in ("a <toy>", "<mood>", "a red <toy>, in <mood> style, <toy>", "a cat", "x<toy>y <mood>_1"):
            ids = engine.tokenizer.encode([prompt]).ids
            expected = pipeline.tokenizer(
                pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer), padding="max_length"
            )
            assert ids[0].tolist() == expected.input_ids, prompt
            compare(engine, pipeline, prompt)
