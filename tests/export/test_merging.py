"""LoRAs and textual inversions merged into a checkpoint are those that are merged into an engine."""

from pathlib import Path

import numpy as np
import pytest
from helpers import loras
from helpers.tiny import call_inputs

import ebca
from ebca.engines.adapters.derived import EmbeddingFile, LoraFile
from ebca.errors import ParameterError
from ebca.export.checkpoint.tiny import build_tiny
from ebca.export.merging import merged


def test_weights_tokens_and_source(tiny_engine_dir: Path, tmp_path: Path) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    from ebca.runtime.text.tokenizer import Tokenizer

    lora = LoraFile(loras.write(tmp_path / "a.safetensors"), 0.5)
    vectors = np.random.default_rng(0).standard_normal((2, 32), np.float32)
    toy = EmbeddingFile(loras.write(tmp_path / "toy.safetensors", {"<toy>": vectors}))
    made = merged(build_tiny(), [lora], [toy])
    assert made.source["lora"] == "a.safetensors:0.5" and made.source["embedding"] == "toy.safetensors=<toy>"
    prompt, (sample, contexts) = "a red <toy>", call_inputs()
    with ebca.load(tiny_engine_dir, lora=[(lora.path, 0.5)], embedding=toy.path) as engine:
        ids = engine.tokenizer.encode([prompt]).ids
        assert made.tokenizer_json is not None and made.text_encoder is not None
        own = Tokenizer.from_json(made.tokenizer_json, made.tokenizer_info).encode([prompt]).ids
        np.testing.assert_array_equal(own, ids)
        unet = made.unet
        assert isinstance(unet, UNet2DConditionModel)
        with torch.no_grad():
            embeddings = made.text_encoder(torch.from_numpy(ids)).last_hidden_state.numpy()
            noise = unet(torch.from_numpy(sample), torch.tensor(500), torch.from_numpy(contexts[:, 0])).sample.numpy()
        # The same weights in another library: sums in another order.
        np.testing.assert_allclose(engine.encode(ids).contexts, embeddings, rtol=0, atol=1e-5)
        np.testing.assert_allclose(ebca.Denoiser(engine)(sample, 500, contexts).noise, noise, rtol=0, atol=1e-5)


def test_a_checkpoint_without_a_text_encoder(tmp_path: Path) -> None:
    from dataclasses import replace

    unet = replace(build_tiny(), text_encoder=None, tokenizer_json=None)
    toy = EmbeddingFile(loras.write(tmp_path / "toy.safetensors", {"<toy>": np.ones(32, np.float32)}))
    with pytest.raises(ParameterError, match="an embedding needs a text encoder"):
        merged(unet, [], [toy])
