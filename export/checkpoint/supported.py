"""Which models can be exported, decided by their configurations alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ebca.errors import ModelError

_BLOCKS: dict[str, set[str | None]] = {
    "down_block_types": {"CrossAttnDownBlock2D", "DownBlock2D"},
    "up_block_types": {"CrossAttnUpBlock2D", "UpBlock2D"},
    "mid_block_type": {"UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None},
}

# Fields that must have the value at which they add nothing to the UNet, and what another value would mean.
_NEUTRAL_FIELDS: dict[str, str] = {
    "addition_embed_type": "added conditioning",
    "class_embed_type": "class conditioning",
    "num_class_embeds": "class conditioning",
    "encoder_hid_dim": "a projection of the text context inside the UNet",
    "encoder_hid_dim_type": "a projection of the text context inside the UNet",
    "cross_attention_norm": "a norm on the text context inside attention",
    "dual_cross_attention": "two text contexts per block",
    "only_cross_attention": "blocks without self-attention",
    "mid_block_only_cross_attention": "a middle block without self-attention",
    "time_cond_proj_dim": "guidance embedded in the timestep, as in latent consistency models",
}


def check_unet_supported(unet_config: Mapping[str, Any]) -> None:
    """Raise ModelError, naming field and value, unless this UNet can run energy-based cross attention."""
    kind = unet_config.get("_class_name", "UNet2DConditionModel")
    if kind != "UNet2DConditionModel":
        raise _unsupported("_class_name", kind, "only UNet2DConditionModel has the layers that are cut")
    if unet_config.get("addition_embed_type") == "text_time":
        raise _unsupported("addition_embed_type", "text_time", "this is Stable Diffusion XL, not supported for now")
    for name, meaning in _NEUTRAL_FIELDS.items():
        value = unet_config.get(name)
        if any(value) if isinstance(value, list | tuple) else value:
            raise _unsupported(name, value, f"not supported: {meaning}")
    if unet_config.get("attention_type", "default") != "default":
        raise _unsupported("attention_type", unet_config["attention_type"], "only 'default' is supported")
    _check_blocks(unet_config)
    _check_context_width(unet_config)
    _check_channels(unet_config)


def _check_blocks(config: Mapping[str, Any]) -> None:
    used: list[Any] = []
    for name, allowed in _BLOCKS.items():
        if name not in config:
            return  # diffusers' defaults are those of Stable Diffusion 1.x
        value = config[name]
        blocks = list(value) if isinstance(value, list | tuple) else [value]
        for block in blocks:
            if block not in allowed:
                raise _unsupported(name, block, "this block type is not supported")
        used += blocks
    if not any(block and "CrossAttn" in block for block in used):
        raise _unsupported("down_block_types", config["down_block_types"], "there is no cross-attention to cut at")


def _check_context_width(config: Mapping[str, Any]) -> None:
    value = config.get("cross_attention_dim", 1280)
    if isinstance(value, list | tuple) and len(set(value)) > 1:
        raise _unsupported("cross_attention_dim", value, "all layers must share one context, so one width")


def _check_channels(config: Mapping[str, Any]) -> None:
    channels, latent = config.get("in_channels", 4), config.get("out_channels", 4)
    if channels not in (latent, 2 * latent + 1):
        wanted = f"{latent} (text to image) or {2 * latent + 1} (inpainting) for out_channels = {latent}"
        raise _unsupported("in_channels", channels, f"other image conditioning is not supported, only {wanted}")


def check_text_encoder_supported(config: Mapping[str, Any], context_width: int) -> None:
    """Raise ModelError unless this is a CLIPTextModel whose hidden size is the UNet's context width."""
    architecture = (config.get("architectures") or ["CLIPTextModel"])[0]
    if architecture != "CLIPTextModel":
        raise ModelError(f"unsupported text encoder: {architecture}", "only CLIPTextModel is supported")
    width = config.get("hidden_size", 512)
    if width != context_width:
        raise ModelError(
            f"unsupported text encoder: hidden_size = {width}, but the UNet's cross_attention_dim is {context_width}"
        )


def context_width(unet_config: Mapping[str, Any]) -> int:
    """The width D of the text context [B, T, D]."""
    value = unet_config.get("cross_attention_dim", 1280)
    return int(value[0] if isinstance(value, list | tuple) else value)


def _unsupported(name: str, value: Any, reason: str) -> ModelError:
    return ModelError(f"unsupported UNet: {name} = {value!r}", reason)
