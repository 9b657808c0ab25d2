"""Single files in the original layout of Stable Diffusion 1.x."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from helpers.checkpoints import same_weights
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ebca.errors import ModelError
from ebca.export.checkpoint import load
from ebca.export.checkpoint.architectures import STABLE_DIFFUSION_1, STABLE_DIFFUSION_2, Architecture
from ebca.export.checkpoint.load import load_checkpoint
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.single_file import load_single_file
from ebca.export.checkpoint.tiny import TEXT_ENCODER_CONFIG, UNET_CONFIG, VAE_CONFIG, build_tiny

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
# Levels of one resnet going down and two going up, as in tiny.
UNET_LEVELS = {
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def ldm_unet_name(name: str) -> str:
    for ours, theirs in {**UNET_TOP, **UNET_LEVELS}.items():
        if name.startswith(ours + "."):
            rest = name.removeprefix(ours + ".")
            head = rest.split(".")[0]
            inner = rest.replace(head, RESNET.get(head, head), 1) if "resnets" in ours else rest
            return f"model.diffusion_model.{theirs}.{inner}"
    raise AssertionError(name)


def ldm_vae_name(name: str) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for ours, theirs in VAE_ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
    return f"first_stage_model.{name}"


def ldm_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The checkpoint under the names and shapes of the original single-file layout."""
    assert checkpoint.vae is not None and checkpoint.text_encoder is not None
    tensors = {ldm_unet_name(name): value for name, value in checkpoint.unet.state_dict().items()}
    for name, value in checkpoint.vae.state_dict().items():
        convolution = ".attentions." in name and value.ndim == 2
        tensors[ldm_vae_name(name)] = value[:, :, None, None] if convolution else value
    for name, value in checkpoint.text_encoder.named_parameters():
        inner = name.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{inner}"] = value
    prefix = "cond_stage_model.transformer.text_model.embeddings."
    tensors[prefix + "position_ids"] = torch.arange(77)[None]
    tensors["model_ema.decay"] = torch.zeros(())
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


@pytest.fixture(scope="module")
def architecture(tiny: Checkpoint) -> Architecture:
    assert tiny.text_encoder is not None
    text = {**TEXT_ENCODER_CONFIG, "vocab_size": tiny.text_encoder.config.vocab_size}
    return Architecture("tiny", unet=UNET_CONFIG, vae=VAE_CONFIG, text_encoder=text)


@pytest.fixture
def single(tiny: Checkpoint, tmp_path: Path) -> Path:
    path = tmp_path / "dream.safetensors"
    save_file(ldm_tensors(tiny), path)
    return path


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (STABLE_DIFFUSION_1, [859_520_964, 83_653_863, 123_060_480]),
        (STABLE_DIFFUSION_2, [865_910_724, 83_653_863, 340_387_840]),
    ],
)
def test_the_written_down_architectures_are_stable_diffusion(architecture: Architecture, expected: list[int]) -> None:
    """Parameter counts as published for the weights."""
    with torch.device("meta"):
        networks = (
            UNet2DConditionModel.from_config(dict(architecture.unet)),
            AutoencoderKL.from_config(dict(architecture.vae)),
            CLIPTextModel(CLIPTextConfig(**architecture.text_encoder)),
        )
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == expected


def test_a_single_file_is_the_model_it_was_made_of(
    single: Path, saved: Path, tiny: Checkpoint, architecture: Architecture
) -> None:
    loaded = load_single_file(single, tokenizer=saved / "tokenizer", known=[architecture])
    assert same_weights(loaded.unet, tiny.unet)
    assert same_weights(loaded.vae, tiny.vae)
    assert same_weights(loaded.text_encoder, tiny.text_encoder)
    assert loaded.tokenizer_json == tiny.tokenizer_json
    assert loaded.scheduler_config == tiny.scheduler_config
    assert (loaded.name, loaded.source["id"]) == ("dream", "dream.safetensors")
    for model in (loaded.unet, loaded.vae, loaded.text_encoder):
        assert model is not None and not model.training
        assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_a_single_inpainting_file_in_half_precision(saved: Path, tmp_path: Path, architecture: Architecture) -> None:
    path = tmp_path / "inpaint.safetensors"
    tensors = ldm_tensors(build_tiny(in_channels=9))
    save_file({name: value.half() for name, value in tensors.items()}, path)
    unet = load_single_file(path, tokenizer=saved / "tokenizer", known=[architecture]).unet
    assert (unet.config.in_channels, unet.dtype) == (9, torch.float32)


def test_a_single_file_may_lack_vae_and_text_encoder(
    tiny: Checkpoint, tmp_path: Path, architecture: Architecture
) -> None:
    path = tmp_path / "pruned.safetensors"
    save_file({n: v for n, v in ldm_tensors(tiny).items() if n.startswith("model.")}, path)
    loaded = load_single_file(path, known=[architecture])
    assert loaded.vae is loaded.text_encoder is loaded.tokenizer_json is None


def test_a_v_prediction_file_says_so(tiny: Checkpoint, tmp_path: Path, architecture: Architecture) -> None:
    path = tmp_path / "v.safetensors"
    tensors = {name: value for name, value in ldm_tensors(tiny).items() if name.startswith("model.")}
    save_file({**tensors, "v_pred": torch.zeros(0)}, path)
    config = load_single_file(path, known=[architecture]).scheduler_config
    assert config is not None and config["prediction_type"] == "v_prediction"


def test_a_tokenizer_larger_than_the_embedding_table_is_refused(
    single: Path, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_single_file", partial(load_single_file, known=[architecture]))
    with pytest.raises(ModelError, match=r"the tokenizer has 49408 tokens, the text encoder of dream only \d+;"):
        load_checkpoint(single)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.diffusion_model.joint_blocks.0.weight", "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.0.weight", "Flux"),
        ("lora_unet_down_blocks_0.lora_up.weight", "LoRA weights"),
        ("down_blocks.0.resnets.0.conv1.weight", "diffusers format; pass their folder"),
        ("something.else", "no Stable Diffusion checkpoint"),
    ],
)
def test_other_single_files_are_refused(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(path)


def test_a_single_file_of_another_context_width_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    prefix = "model.diffusion_model.input_blocks."
    conv_in, to_k = f"{prefix}0.0.weight", f"{prefix}1.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({conv_in: torch.zeros(8, 4, 3, 3), to_k: torch.zeros(8, 4096)}, path)
    with pytest.raises(ModelError, match=r"two\.safetensors is a model with context width 4096; .* 1024 .* or 2048 "):
        load_checkpoint(path)


def test_a_class_conditional_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "unclip.safetensors"
    prefix = "model.diffusion_model."
    conv_in, to_k = (
        f"{prefix}input_blocks.{one}" for one in ("0.0.weight", "1.1.transformer_blocks.0.attn2.to_k.weight")
    )
    label = {f"{prefix}label_emb.0.0.weight": torch.zeros(8, 8)}
    save_file({conv_in: torch.zeros(8, 4, 3, 3), to_k: torch.zeros(8, 1024), **label}, path)
    with pytest.raises(ModelError, match=r"unclip\.safetensors holds a class-conditional model"):
        load_checkpoint(path)


def test_a_single_file_that_does_not_fit_names_the_part(single: Path, saved: Path, architecture: Architecture) -> None:
    tensors = load_file(single)
    del tensors["first_stage_model.quant_conv.bias"]
    save_file(tensors, single)
    with pytest.raises(ModelError, match=r"the VAE in dream\.safetensors does not fit .*quant_conv\.bias"):
        load_single_file(single, tokenizer=saved / "tokenizer", known=[architecture])


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
@pytest.mark.parametrize("exists", [True, False])
def test_pickled_single_files_are_never_loaded(tmp_path: Path, suffix: str, exists: bool) -> None:
    path = tmp_path / f"model{suffix}"
    if exists:
        path.write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match=r"is a pickle, .* never loaded"):
        load_checkpoint(str(path))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.touch()
    with pytest.raises(ModelError, match="no checkpoint"):
        load_checkpoint(path)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"abc")
    with pytest.raises(ModelError, match=r"broken safetensors file .*broken\.safetensors"):
        load_checkpoint(broken)
