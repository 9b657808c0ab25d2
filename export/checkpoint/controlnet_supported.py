"""Which ControlNets fit a UNet, decided by their configurations alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import ControlNetModel

from ebca.errors import ModelError
from ebca.export.checkpoint import fields
from ebca.export.checkpoint.fields import ACTIVATION, COUNT, FLAG, NUMBER, POSITIVE, Kind, one_of, one_or_list, optional
from ebca.export.checkpoint.supported import context_width, is_xl

_CONTROLNET = "ControlNet"

# Fields that must have the value at which they add nothing, and what another value would mean.
_NEUTRAL: Mapping[str, str] = {
    "addition_embed_type": "added conditioning, as of Stable Diffusion XL",
    "class_embed_type": "class conditioning",
    "num_class_embeds": "class conditioning",
    "encoder_hid_dim": "a projection of the text context",
    "encoder_hid_dim_type": "a projection of the text context",
    "only_cross_attention": "blocks without self-attention",
    "global_pool_conditions": "residuals averaged over the image, which need guess mode",
}
_BLOCKS = Kind(
    "a list of CrossAttnDownBlock2D and DownBlock2D",
    lambda value: fields.is_list(value) and bool(value) and {*value} <= {"CrossAttnDownBlock2D", "DownBlock2D"},
)
_SAME = ("block_out_channels", "layers_per_block")
"""Fields that decide the number and the shapes of the residuals, so they must be the UNet's."""


def check_controlnet_fits(config: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
    """Raise ModelError, naming field and value, unless a ControlNet can be exported and its residuals fit the UNet.

    Args:
        config: of the ControlNet. A field that is absent has the default of diffusers.
        unet: configuration of the UNet, which is supported.
    """
    kind = config.get("_class_name")
    if kind != "ControlNetModel":
        raise fields.unsupported(_CONTROLNET, "_class_name", kind, "only ControlNetModel is supported")
    if is_xl(unet):
        raise ModelError("ControlNets of Stable Diffusion XL are not supported", "leave them out")
    config = {**_defaults(), **config}
    for name, meaning in _NEUTRAL.items():
        value = config[name]
        if any(value) if fields.is_list(value) else value:
            raise fields.unsupported(_CONTROLNET, name, value, f"not supported: {meaning}")
    fields.check_fields(config, {"down_block_types": _BLOCKS}, _CONTROLNET)
    fields.check_fields(config, _kinds(len(config["down_block_types"])), _CONTROLNET)
    _check_same(config, unet)


def _kinds(blocks: int) -> dict[str, Kind]:
    return {
        "in_channels": COUNT,
        "conditioning_channels": Kind("3, the channels of an image", lambda value: value == 3),
        "flip_sin_to_cos": FLAG,
        "freq_shift": NUMBER,
        "mid_block_type": one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
        "block_out_channels": fields.list_of(COUNT, blocks),
        "layers_per_block": COUNT,
        "downsample_padding": Kind("1", lambda value: value == 1),
        "mid_block_scale_factor": POSITIVE,
        "act_fn": ACTIVATION,
        "norm_num_groups": COUNT,
        "norm_eps": POSITIVE,
        "cross_attention_dim": COUNT,
        "transformer_layers_per_block": one_or_list(COUNT, blocks),
        "attention_head_dim": one_or_list(COUNT, blocks),
        "num_attention_heads": optional(one_or_list(COUNT, blocks)),
        "use_linear_projection": FLAG,
        "upcast_attention": FLAG,
        "resnet_time_scale_shift": one_of("default", "scale_shift"),
        "controlnet_conditioning_channel_order": one_of("rgb", "bgr"),
        "conditioning_embedding_out_channels": fields.list_of(COUNT),
    }


def _check_same(config: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
    width = context_width(unet)
    if config["cross_attention_dim"] != width:
        raise _other_base("cross_attention_dim", config["cross_attention_dim"], width)
    if config["in_channels"] != unet["out_channels"]:
        raise _other_base("in_channels", config["in_channels"], unet["out_channels"])
    for name in _SAME:
        blocks = len(unet["block_out_channels"])
        its, ours = (_each(value, blocks) for value in (config[name], unet[name]))
        if its != ours:
            raise _other_base(name, config[name], unet[name])


def _each(value: Any, blocks: int) -> list[Any]:
    return list(value) if fields.is_list(value) else [value] * blocks


def _other_base(name: str, its: Any, ours: Any) -> ModelError:
    return ModelError(
        f"the ControlNet is for another base: its {name} is {its}, and that of the UNet {ours}",
        "take the ControlNet that was made for this model",
    )


def _defaults() -> dict[str, Any]:
    parameters = inspect.signature(ControlNetModel.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
