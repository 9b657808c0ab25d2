"""Single-file checkpoints in the original layout of Stable Diffusion 1.x, read without network access.

diffusers can convert them too, but fetches the configurations from the hub; here they are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ebca.errors import ModelError
from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG
from ebca.export.checkpoint.files import check_safetensors, first_line
from ebca.export.checkpoint.hub import fetch
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.supported import check_unet_supported, context_width
from ebca.export.checkpoint.tokenizer import tokenizer_json

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."
_CONV_IN = UNET_PREFIX + "input_blocks.0.0.weight"
_TO_K = UNET_PREFIX + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_TOKENIZER_REPO = "openai/clip-vit-large-patch14"
_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")

# Tensor names that identify what else a file can be, in the order in which they are checked.
_OTHER_FORMATS = (
    ("lora", "LoRA weights, not a checkpoint"),
    ("conditioner.embedders.", "Stable Diffusion XL, not supported for now"),
    ("label_emb.", "Stable Diffusion XL or another class-conditional model, not supported"),
    ("joint_blocks.", "Stable Diffusion 3, which has no UNet"),
    ("double_blocks.", "Flux, which has no UNet"),
    ("down_blocks.", "weights in diffusers format; pass their folder, with config.json, instead"),
)


@dataclass(frozen=True)
class Architecture:
    """The configurations that a single file lacks."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]


STABLE_DIFFUSION_1 = Architecture(
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    vae={
        "sample_size": 512,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    },
    text_encoder={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
    },
)


def load_single_file(
    path: Path,
    *,
    tokenizer: str | Path | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    architecture: Architecture = STABLE_DIFFUSION_1,
) -> Checkpoint:
    """Load a .safetensors file. Networks that the file lacks (a pruned VAE, say) are None."""
    check_suffix(path)
    check_safetensors(path)
    names = tensor_names(path)
    unet_config = _unet_config(path, names, architecture)
    check_unet_supported(unet_config)
    text_encoder = _load_text_encoder(path, names, architecture.text_encoder)
    text: str | None = None
    info: dict[str, Any] = {}
    if tokenizer is not None:
        text, info = tokenizer_json(tokenizer)
    elif text_encoder is not None:
        text, info = tokenizer_json(_fetch_tokenizer(token, cache_dir))
    scheduler = dict(SCHEDULER_CONFIG)
    if "v_pred" in names:  # the marker that v-prediction fine-tunes leave in the file
        scheduler["prediction_type"] = "v_prediction"
    return Checkpoint(
        name=path.stem,
        unet=_load_unet(path, names, unet_config),
        text_encoder=text_encoder,
        vae=_load_vae(path, names, architecture.vae),
        tokenizer_json=text,
        tokenizer_info=info,
        scheduler_config=scheduler,
        source={"kind": "single-file", "id": path.name, "revision": None},
    )


def check_suffix(path: Path) -> None:
    """Raise ModelError unless the file can contain safetensors."""
    if path.suffix.lower() in _PICKLES:
        raise ModelError(
            f"{path.name} is a pickle, which can run code when it is opened and is never loaded",
            "get the .safetensors version of the model",
        )
    if path.suffix.lower() != ".safetensors":
        raise ModelError(f"{path} is no checkpoint: a .safetensors file or a folder in diffusers format is needed")


def tensor_names(path: Path) -> list[str]:
    """The names of all tensors in a file."""
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _unet_config(path: Path, names: list[str], architecture: Architecture) -> dict[str, Any]:
    """The architecture's configuration with the file's own number of input channels."""
    for mark, meaning in _OTHER_FORMATS:
        if any(mark in name for name in names):
            raise ModelError(f"{path.name} holds {meaning}")
    if _CONV_IN not in names or _TO_K not in names:
        raise ModelError(f"{path.name} is no Stable Diffusion checkpoint: it has no tensor {_CONV_IN} or {_TO_K}")
    with safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in (_CONV_IN, _TO_K)}
    for name, axes in ((_CONV_IN, 4), (_TO_K, 2)):
        if len(shapes[name]) != axes:
            raise ModelError(f"{path.name} holds {name} in shape {shapes[name]}, not in {axes} dimensions")
    channels, width = shapes[_CONV_IN][1], shapes[_TO_K][1]
    expected = context_width(architecture.unet)
    if width != expected:
        which = "Stable Diffusion 2.x" if width == 1024 else f"a model with context width {width}"
        raise ModelError(
            f"{path.name} is {which}",
            f"single files are supported for Stable Diffusion 1.x "
            f"(context width {expected}), other models as folders in diffusers format",
        )
    return {**architecture.unet, "in_channels": channels}


def read_tensors(path: Path, names: list[str], prefix: str) -> dict[str, Tensor]:
    """The tensors under one prefix, in float32. The rest of the file (averaged copies, say) is not read."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).to(torch.float32) for name in names if name.startswith(prefix)}


def _load_unet(path: Path, names: list[str], config: dict[str, Any]) -> UNet2DConditionModel:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    return fill(
        unet,
        converted(convert_ldm_unet_checkpoint, path, "UNet", read_tensors(path, names, UNET_PREFIX), config),
        path,
        "UNet",
    )


def _load_vae(path: Path, names: list[str], config: Mapping[str, Any]) -> AutoencoderKL | None:
    tensors = read_tensors(path, names, VAE_PREFIX)
    if not tensors:
        return None
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(config))
    return fill(vae, converted(convert_ldm_vae_checkpoint, path, "VAE", tensors, config), path, "VAE")


def _load_text_encoder(path: Path, names: list[str], config: Mapping[str, Any]) -> CLIPTextModel | None:
    tensors = read_tensors(path, names, CLIP_PREFIX)
    if not tensors:
        return None
    # Not on the meta device: its position_ids are a buffer that no file contains.
    model = CLIPTextModel(CLIPTextConfig(**config))
    wrapped = hasattr(model, "text_model")
    state = {}
    for name, value in converted(convert_ldm_clip_checkpoint, path, "text encoder", tensors).items():
        if not name.endswith("position_ids"):
            state[name if wrapped else name.removeprefix("text_model.")] = value
    return fill(model, state, path, "text encoder")


def converted(convert: Callable[..., dict[str, Tensor]], path: Path, part: str, *about: Any) -> dict[str, Tensor]:
    """diffusers' names for the tensors. Its functions assume that every tensor is there."""
    try:
        return convert(*about)
    except Exception as error:
        raise ModelError(
            f"the {part} in {path.name} does not fit the architecture: {first_line(error)}", "download it again"
        ) from error


def fill(model: nn.Module, state: dict[str, Tensor], path: Path, part: str) -> Any:
    """The model with these weights, for export. Raises ModelError if they are not all of its weights."""
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:300]
        raise ModelError(f"the {part} in {path.name} does not fit the architecture: {problem}") from error
    return model.eval().requires_grad_(False)


def _fetch_tokenizer(token: str | None, cache_dir: str | Path | None) -> Path:
    def choose(names: list[str]) -> list[str]:
        return [name for name in names if name in _TOKENIZER_FILES]

    try:
        return fetch(_TOKENIZER_REPO, choose, token=token, cache_dir=cache_dir)
    except ModelError as error:
        raise ModelError(
            "a single-file checkpoint has no tokenizer",
            f"pass --tokenizer with the tokenizer folder of any Stable Diffusion 1.x model ({error})",
        ) from error
