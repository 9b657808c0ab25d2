"""The small decoder for previews, from a folder to the images that a run shows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

import ebca
from ebca.engines.contract import manifest as manifests
from ebca.errors import EngineError, ModelError
from ebca.export.api import export_checkpoint
from ebca.export.checkpoint.load import load_checkpoint
from ebca.export.checkpoint.tiny import build_tiny
from ebca.export.graph.modules import downscale
from ebca.runtime.cli.run import main
from ebca.runtime.images.preview import DecodedPreview


def small_decoder(**config: Any) -> AutoencoderTiny:
    """Of random weights, for latents and images as those of the tiny model."""
    vae = build_tiny().vae
    assert vae is not None
    levels = len(vae.config.block_out_channels)
    torch.manual_seed(0)
    of_model = {"latent_channels": vae.config.latent_channels, "scaling_factor": 1.5}
    made = AutoencoderTiny(
        encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels,
        num_encoder_blocks=(1,) * levels,
        num_decoder_blocks=(1,) * levels,
        **{**of_model, **config},
    )
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("taesd")
    small_decoder().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("with preview") / "engine"
    export_checkpoint(load_checkpoint("tiny", preview_vae=folder), path, scheduler_steps=(2,))
    return path


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_it_decodes_as_diffusers_does(engine: Path, folder: Path, size: tuple[int, int]) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, *size), np.float32)
    tiny = AutoencoderTiny.from_pretrained(folder)
    expected = tiny.decode(torch.from_numpy(latents) / 1.5).sample.detach().numpy()
    with ebca.load(engine, backend="onnxruntime") as opened:
        made = opened.decode_preview(latents)
    # Float32 sums of about a hundred terms in another order.
    assert made.shape == expected.shape and np.abs(made - expected).max() <= 2e-5


def test_a_session_shows_it(engine: Path) -> None:
    with ebca.load(engine, backend="onnxruntime") as opened, opened.session() as session:
        preview = session.preview()
        assert isinstance(preview, DecodedPreview)
        vae = opened.manifest.vae
        assert vae is not None and vae.preview == "vae_preview"
        latents = np.zeros((2, 4, session.height // vae.downscale, session.width // vae.downscale), np.float32)
        assert [image.size for image in preview(latents)] == [(session.width, session.height)] * 2


def test_ebca_run_writes_it(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--engine", str(engine), "--prompt", "a cat", "--steps", "2", "--quiet", "--output", "cat.png"]
    assert main([*words, "--preview", "now.png"]) == 0
    assert (tmp_path / "now.png").is_file()


def test_without_one_there_is_none(tiny_engine_dir: Path) -> None:
    found = manifests.read(tiny_engine_dir)
    assert found.vae is not None and found.vae.preview is None
    with ebca.load(tiny_engine_dir, backend="onnxruntime") as opened, pytest.raises(EngineError):
        opened.decode_preview(np.zeros((1, 4, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"_class_name": "AutoencoderKL"}, "unsupported decoder of previews: AutoencoderKL"),
        ({"latent_channels": 16}, "latent_channels = 16"),
        ({"out_channels": 1}, "out_channels = 1"),
        ({"act_fn": "tan"}, "act_fn = 'tan'"),
    ],
)
def test_what_does_not_fit_is_one_line(changes: dict[str, Any], problem: str, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ModelError, match=problem):
        load_checkpoint("tiny", preview_vae=tmp_path)


def test_other_sizes_and_missing_folders_are_refused(tmp_path: Path) -> None:
    vae = build_tiny().vae
    assert vae is not None
    small_decoder(upsampling_scaling_factor=3).save_pretrained(tmp_path / "three")
    with pytest.raises(ModelError, match=f"pixels per latent, and the VAE {downscale(vae)}"):
        load_checkpoint("tiny", preview_vae=tmp_path / "three")
    with pytest.raises(ModelError, match="there is no preview VAE in"):
        load_checkpoint("tiny", preview_vae=tmp_path / "nowhere")
