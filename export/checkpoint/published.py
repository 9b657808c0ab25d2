"""Layouts in which Stable Diffusion 1.x, 2.x and XL have been published: every tensor's name and shape, from the
architecture alone; and files of random weights in these layouts, to try an export without the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ebca.export.checkpoint.architectures import (
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_2,
    STABLE_DIFFUSION_XL,
    Architecture,
)
from ebca.export.checkpoint.original_names import (
    OPEN_CLIP_PROJECTION,
    ema_name,
    open_clip_name,
    unet_names,
    vae_names,
)
from ebca.export.checkpoint.original_parts import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX, XL_TEXT_PREFIXES
from ebca.export.checkpoint.random_weights import random_parameter

Shapes = Mapping[str, tuple[int, ...]]

# Beside the networks: the noise schedule of the original code.
_SCHEDULE = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
_NEVER_ROUNDED = (*_SCHEDULE, "model_ema.decay")


@dataclass(frozen=True)
class Layout:
    """One published layout.

    Attributes:
        architecture: of the networks.
        in_channels: of the UNet: 4; 9 for inpainting, 8 for InstructPix2Pix.
        text: "clip" has the level "text_model", "flat" has not; "open" is open CLIP with one layer more than is used;
            "both" is CLIP and all of a second, open CLIP, as in Stable Diffusion XL.
        vae: how its attention is spelled: the original's, or diffusers' of today ("linear") or before ("old").
        parts: which networks the file has.
        ema: whether it has averaged copies of the UNet's weights too.
        dtype: of the stored weights.
        metadata: texts that are stored with them.
    """

    architecture: Architecture = STABLE_DIFFUSION_1
    in_channels: int = 4
    text: Literal["clip", "flat", "open", "both"] = "clip"
    vae: Literal["original", "linear", "old"] = "original"
    parts: tuple[str, ...] = ("unet", "text_encoder", "vae")
    ema: bool = False
    dtype: torch.dtype = torch.float16
    metadata: Mapping[str, str] | None = None

    def of(self, architecture: Architecture) -> Layout:
        """The same layout of another architecture."""
        return replace(self, architecture=architecture)


_TWO: Final = Layout(STABLE_DIFFUSION_2, text="open", dtype=torch.float32)
_XL: Final = Layout(STABLE_DIFFUSION_XL, text="both")
PUBLISHED: Final[Mapping[str, Layout]] = {
    "sd-1.5-fp16": Layout(),
    "sd-1.5-with-ema": Layout(ema=True, dtype=torch.float32),
    "sd-1.5-flat-clip": Layout(text="flat"),
    "sd-1.5-linear-vae": Layout(vae="linear"),
    "sd-1.5-bf16": Layout(dtype=torch.bfloat16),
    "sd-1.5-fp8": Layout(dtype=torch.float8_e4m3fn),
    "sd-1.5-fp8-e5m2": Layout(dtype=torch.float8_e5m2),
    "sd-1.5-inpainting": Layout(in_channels=9),
    "instruct-pix2pix": Layout(in_channels=8, ema=True, dtype=torch.float32),
    "sd-2.1-768": _TWO,
    "sd-2.1-768-described": replace(_TWO, metadata={"modelspec.prediction_type": "v", "modelspec.title": "two-one"}),
    "sd-2.1-base": replace(_TWO, metadata={"modelspec.architecture": "stable-diffusion-v2-512"}),
    "sd-2.0-inpainting": replace(_TWO, in_channels=9),
    "sdxl-base": _XL,
    "sdxl-turbo": replace(_XL, metadata={"modelspec.prediction_type": "epsilon", "modelspec.title": "turbo"}),
    "sdxl-inpainting": replace(_XL, in_channels=9),
    "sdxl-linear-vae": replace(_XL, vae="linear"),
    "vae-original": Layout(parts=("vae",), dtype=torch.float32),
    "vae-linear": Layout(parts=("vae",), vae="linear", dtype=torch.float32),
    "vae-old": Layout(parts=("vae",), vae="old", dtype=torch.float32),
}
"""Layouts by name."""


def reduced(architecture: Architecture) -> Architecture:
    """An architecture with the same names, a twentieth as wide and more, so that files of it take a few megabytes."""
    if architecture.text_encoder_2 is not None:
        return _reduced_xl(architecture)
    second = architecture.width != STABLE_DIFFUSION_1.width
    width = 64 if second else 32
    return replace(
        architecture,
        unet={
            **architecture.unet,
            "block_out_channels": [32, 64, 64, 64],
            "norm_num_groups": 8,
            "cross_attention_dim": width,
            "attention_head_dim": [2, 4, 4, 4] if second else 4,
            "sample_size": 16,
        },
        vae={**architecture.vae, "block_out_channels": [16, 32, 32, 32], "norm_num_groups": 8, "sample_size": 128},
        text_encoder={
            **architecture.text_encoder,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
        },
        side_if_v=24 if architecture.side_if_v else None,
    )


def _reduced_xl(architecture: Architecture) -> Architecture:
    assert architecture.text_encoder_2 is not None
    width, width_2, pooled = 32, 48, 40
    small = {"num_attention_heads": 4, "num_hidden_layers": 3}
    return replace(
        architecture,
        unet={
            **architecture.unet,
            "block_out_channels": [32, 64, 64],
            "transformer_layers_per_block": [1, 1, 2],
            "norm_num_groups": 8,
            "cross_attention_dim": width + width_2,
            "attention_head_dim": [2, 4, 4],
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + pooled,
            "sample_size": 16,
        },
        vae={**architecture.vae, "block_out_channels": [16, 32, 32, 32], "norm_num_groups": 8, "sample_size": 128},
        text_encoder={**architecture.text_encoder, "hidden_size": width, "intermediate_size": 2 * width, **small},
        text_encoder_2={
            **architecture.text_encoder_2,
            "hidden_size": width_2,
            "intermediate_size": 2 * width_2,
            "projection_dim": pooled,
            **small,
        },
    )


def shapes(layout: Layout) -> Shapes:
    """Name and shape of every tensor of a file in this layout."""
    makers = {"unet": _unet, "text_encoder": _text_encoder, "vae": _vae}
    found = {name: shape for part in layout.parts for name, shape in makers[part](layout)}
    if "unet" in layout.parts:
        found |= dict.fromkeys(_SCHEDULE, (1000,))
    return found


def write(layout: Layout, path: Path, seed: int = 0) -> Path:
    """Write a .safetensors file of random weights in this layout; returns its path."""
    tensors = {name: _tensor(layout, name, shape, seed) for name, shape in shapes(layout).items()}
    save_file(tensors, path, dict(layout.metadata) if layout.metadata else None)
    return path


def _tensor(layout: Layout, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    if name.endswith("position_ids"):
        return torch.arange(shape[1])[None]
    if name.endswith("num_updates"):
        return torch.zeros(shape, dtype=torch.int32)
    value = torch.from_numpy(random_parameter(name, shape, seed)) if shape else torch.zeros(())
    return value.contiguous() if name in _NEVER_ROUNDED else value.to(layout.dtype).contiguous()


def _parameters(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix("text_model."): tuple(value.shape) for name, value in network.named_parameters()}


def _unet(layout: Layout) -> Iterator[tuple[str, tuple[int, ...]]]:
    config = {**layout.architecture.unet, "in_channels": layout.in_channels}
    with torch.device("meta"):
        parameters = _parameters(UNet2DConditionModel.from_config(config))
    for ours, theirs in unet_names(parameters, config).items():
        yield UNET_PREFIX + theirs, parameters[ours]
        if layout.ema:
            yield ema_name(UNET_PREFIX + theirs), parameters[ours]
    if layout.ema:
        yield from (("model_ema.decay", ()), ("model_ema.num_updates", ()))


def _vae(layout: Layout) -> Iterator[tuple[str, tuple[int, ...]]]:
    config = dict(layout.architecture.vae)
    with torch.device("meta"):
        parameters = _parameters(AutoencoderKL.from_config(config))
    alone = layout.parts == ("vae",)
    for ours, spellings in vae_names(parameters, config).items():
        shape = parameters[ours]
        if alone and layout.vae != "original":
            # Files of a VAE alone in diffusers' layout have its names.
            theirs = spellings[-1] if layout.vae == "old" else ours
        else:
            index = min(("original", "linear", "old").index(layout.vae), len(spellings) - 1)
            in_attention = ".attn_1." in spellings[0]
            theirs = spellings[index] if in_attention else spellings[0]
            if layout.vae == "original" and in_attention and len(shape) == 2:
                shape = (*shape, 1, 1)
        yield ("" if alone else VAE_PREFIX) + theirs, shape
    if alone and layout.vae == "original":
        yield "loss.logvar", ()


def _text_encoder(layout: Layout) -> Iterator[tuple[str, tuple[int, ...]]]:
    config = dict(layout.architecture.text_encoder)
    if layout.text == "open":
        config["num_hidden_layers"] += 1
        yield from _open_clip(config, f"{TEXT_PREFIX}model.")
        yield f"{TEXT_PREFIX}model.attn_mask", (config["max_position_embeddings"],) * 2
    elif layout.text == "both":
        assert layout.architecture.text_encoder_2 is not None
        yield from _clip(config, f"{XL_TEXT_PREFIXES[0]}transformer.text_model.")
        yield from _open_clip(layout.architecture.text_encoder_2, f"{XL_TEXT_PREFIXES[1]}model.")
    else:
        yield from _clip(config, f"{TEXT_PREFIX}transformer." + ("text_model." if layout.text == "clip" else ""))


def _clip(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in _text_parameters(config).items():
        yield prefix + name, shape
    yield f"{prefix}embeddings.position_ids", (1, config["max_position_embeddings"])


def _open_clip(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in _text_parameters(config).items():
        theirs, third = open_clip_name(name)
        if third is None:
            yield prefix + theirs, shape
        elif third == 0:
            yield prefix + theirs, (3 * shape[0], *shape[1:])
    yield prefix + OPEN_CLIP_PROJECTION, (config["hidden_size"], config["projection_dim"])
    yield f"{prefix}logit_scale", ()


def _text_parameters(config: Mapping[str, Any]) -> Shapes:
    with torch.device("meta"):
        return _parameters(CLIPTextModel(CLIPTextConfig(**config)))
