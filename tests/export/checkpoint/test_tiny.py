"""The built-in model: the same bytes for the same seed, and a pipeline that others can load."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from ebca.errors import ParameterError
from ebca.export.checkpoint.load import load_checkpoint
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.tiny import WORDS, build_tiny, save_tiny
from ebca.runtime.text.tokenizer import Tokenizer

FIRST_WEIGHTS = [-0.209771872, -0.0545786619]


def digest(checkpoint: Checkpoint) -> str:
    total = hashlib.sha256(str(checkpoint.tokenizer_json).encode())
    for model in (checkpoint.unet, checkpoint.text_encoder, checkpoint.vae):
        assert model is not None
        for name, value in sorted(model.named_parameters()):
            total.update(name.removeprefix("text_model.").encode())
            total.update(value.numpy().tobytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return build_tiny()


def test_the_same_seed_gives_the_same_model(tiny: Checkpoint) -> None:
    torch.manual_seed(1234)
    assert digest(build_tiny()) == digest(tiny)
    assert digest(build_tiny(1)) != digest(tiny)


def test_weights_follow_from_the_parameter_name(tiny: Checkpoint) -> None:
    name = "conv_in.weight"
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    wanted = rng.standard_normal(size=(32, 4, 3, 3), dtype=np.float32) / np.float32(6)
    assert np.array_equal(tiny.unet.get_parameter(name).numpy(), wanted)
    # Fixed numbers, so that a change of numpy or of the recipe does not pass unseen.
    assert tiny.unet.conv_in.weight.flatten()[:2].tolist() == pytest.approx(FIRST_WEIGHTS, abs=1e-7)


def test_models_are_ready_for_export(tiny: Checkpoint) -> None:
    for model in (tiny.unet, tiny.text_encoder, tiny.vae):
        assert model is not None
        assert not model.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())
        assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert tiny.source == {"kind": "built-in", "id": "tiny", "revision": None}
    assert tiny.vae is not None and tiny.vae.config.scaling_factor == 0.18215


def test_every_listed_word_is_one_token(tiny: Checkpoint) -> None:
    tokenizer = Tokenizer.from_json(str(tiny.tokenizer_json), tiny.tokenizer_info)
    assert len(set(WORDS)) == len(WORDS)
    assert {len(tokens) for tokens in tokenizer.encode(WORDS).tokens} == {3}


def test_images_are_128_pixels(tiny: Checkpoint) -> None:
    assert tiny.vae is not None
    latent = torch.zeros(1, 4, 16, 16)
    assert tiny.vae.decode(latent).sample.shape == (1, 3, 128, 128)
    assert tiny.vae.encode(torch.zeros(1, 3, 128, 128)).latent_dist.mean.shape == latent.shape
    assert tiny.unet.config.sample_size == 16


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(ParameterError, match="seed must be between 0"):
        build_tiny(seed)


def test_the_folder_loads_back_bit_for_bit(tiny: Checkpoint, tmp_path: Path) -> None:
    loaded = load_checkpoint(save_tiny(tmp_path / "model"))
    assert digest(loaded) == digest(tiny)
    assert loaded.tokenizer_json == tiny.tokenizer_json
    assert loaded.tokenizer_info == tiny.tokenizer_info
    assert loaded.scheduler_config == tiny.scheduler_config
    assert (loaded.name, loaded.source["kind"]) == ("model", "folder")


def test_diffusers_loads_the_folder(tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(save_tiny(tmp_path), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a lion with a crown", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 128, 128, 3)
    assert 0.05 < image.std() < 0.45


def test_the_inpainting_form_has_9_channels(tiny: Checkpoint, tmp_path: Path) -> None:
    loaded = load_checkpoint(save_tiny(tmp_path, in_channels=9))
    assert loaded.unet.conv_in.weight.shape == (32, 9, 3, 3)
    assert torch.equal(loaded.unet.conv_out.weight, tiny.unet.conv_out.weight)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
