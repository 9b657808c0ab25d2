"""Layers of the text encoder that are left out."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import manifests

import ebca
from ebca.engines.contract.accuracy import relative_l2
from ebca.export.checkpoint.tiny import build_tiny


def test_layers_equal_those_of_diffusers(engine: ebca.Engine) -> None:
    """diffusers: the hidden state before that many layers from the end, then the final norm. Relative: float32 rounds
    embeddings of about 3 by 2e-7 already."""
    model, ids = build_tiny().text_encoder, engine.tokenizer.encode(["a red cat", "a dog"]).ids
    assert model is not None
    with torch.no_grad():
        states = model(torch.from_numpy(ids), output_hidden_states=True).hidden_states
        norm = getattr(model, "text_model", model).final_layer_norm
        for skip in range(model.config.num_hidden_layers):
            assert relative_l2(engine.encode(ids, clip_skip=skip).contexts, norm(states[-(skip + 1)]).numpy()) <= 1e-6
    assert not np.allclose(engine.encode(ids, clip_skip=1).contexts, engine.encode(ids).contexts)


def test_it_is_a_field_of_a_request(session: ebca.Session) -> None:
    run = {"steps": 1, "scheduler": "ddim", "seed": 1, "output": "latents"}
    made = session.generate("a red cat", clip_skip=1, **run)
    assert made.parameters["clip_skip"] == 1
    assert not np.array_equal(made.latents, session.generate("a red cat", **run).latents)
    assert np.array_equal(
        session.generate("a red cat", clip_skip=None, **run).latents, session.generate("a red cat", **run).latents
    )


@pytest.mark.parametrize("value", [2, -1])
def test_there_are_only_so_many_layers(session: ebca.Session, value: int) -> None:
    with pytest.raises(ebca.ParameterError, match=f"clip_skip is {value}; the text encoder has 2 layers: give 0 to 1"):
        session.generate("a cat", clip_skip=value)


def test_the_layers_share_the_weights_of_the_encoder(engine: ebca.Engine) -> None:
    components = engine.manifest.components
    assert components["text_encoder_layers"].weights == components["text_encoder"].weights
    assert not (engine.directory.path / "text_encoder_layers.onnx.data").exists()


def test_directories_without_layers_say_so(shapes_dir: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(shapes_dir, older)
    manifests.edit(older, lambda data: [data["text_encoder"].pop(name) for name in ("layers", "layers_component")])
    with (
        ebca.load(older, backend="onnxruntime") as engine,
        pytest.raises(ebca.EngineError, match="export it again"),
    ):
        engine.generate("a red circle", clip_skip=1, steps=1)
