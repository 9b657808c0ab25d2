"""Which UNets can be exported, decided by their configurations alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DConditionModel

from ebca.engines.contract.entries import TIME_IDS
from ebca.errors import ModelError
from ebca.export.checkpoint import fields
from ebca.export.checkpoint.fields import ACTIVATION, COUNT, FLAG, NUMBER, POSITIVE, Kind, one_of, one_or_list, optional

_UNET = "UNet"
# What `addition_embed_type` is in Stable Diffusion XL.
_XL = "text_time"

_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
_MID = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)
_UP = ("CrossAttnUpBlock2D", "UpBlock2D")

# Fields that must have the value at which they add nothing to the UNet, and what another value would mean.
_NEUTRAL_FIELDS: dict[str, str] = {
    "class_embed_type": "class conditioning",
    "class_embeddings_concat": "class conditioning",
    "num_class_embeds": "class conditioning",
    "encoder_hid_dim": "a projection of the text context inside the UNet",
    "encoder_hid_dim_type": "a projection of the text context inside the UNet",
    "cross_attention_norm": "a norm on the text context inside attention",
    "dual_cross_attention": "two text contexts per block",
    "only_cross_attention": "blocks without self-attention",
    "mid_block_only_cross_attention": "a middle block without self-attention",
}

_KERNEL = Kind("an odd whole number", lambda value: fields.is_count(value) and value % 2 == 1)
_ONE = Kind("1, because others round odd sizes down", lambda value: fields.is_count(value) and value == 1)

# Fields that any block layout takes. Lists with one value per block are in `_block_kinds`.
_KINDS: dict[str, Kind] = {
    "in_channels": COUNT,
    "out_channels": COUNT,
    "center_input_sample": FLAG,
    "flip_sin_to_cos": FLAG,
    "time_cond_proj_dim": optional(COUNT),
    "freq_shift": NUMBER,
    "downsample_padding": _ONE,
    "mid_block_scale_factor": POSITIVE,
    "dropout": NUMBER,
    "act_fn": ACTIVATION,
    "norm_num_groups": COUNT,
    "norm_eps": POSITIVE,
    "use_linear_projection": FLAG,
    # null in Stable Diffusion XL
    "upcast_attention": optional(FLAG),
    "resnet_time_scale_shift": one_of("default", "scale_shift"),
    "resnet_skip_time_act": FLAG,
    "resnet_out_scale_factor": POSITIVE,
    "time_embedding_type": one_of("positional", "fourier"),
    "time_embedding_dim": optional(COUNT),
    "time_embedding_act_fn": optional(ACTIVATION),
    "timestep_post_act": optional(ACTIVATION),
    "conv_in_kernel": _KERNEL,
    "conv_out_kernel": _KERNEL,
    "attention_type": one_of("default"),
    "addition_embed_type": one_of(_XL, None),
}


def check_unet_supported(unet_config: Mapping[str, Any]) -> None:
    """Raise ModelError, naming field and value, unless this UNet can run energy-based cross attention.

    A field that is absent has the default of diffusers, and a field that diffusers does not know is ignored, as there.
    """
    kind = unet_config.get("_class_name", "UNet2DConditionModel")
    if kind != "UNet2DConditionModel":
        raise _unsupported("_class_name", kind, "only UNet2DConditionModel has the layers that are cut")
    if "_class_name" not in unet_config and "architectures" in unet_config:
        raise _unsupported(
            "architectures", unet_config["architectures"], "this is the configuration of another network"
        )
    config = {**_defaults(), **unet_config}
    _check_neutral(config)
    fields.check_fields(config, _KINDS, _UNET)
    _check_blocks(config)
    fields.check_fields(config, _block_kinds(config), _UNET)
    _check_heads(config)
    _check_groups(config)
    _check_context_width(config)
    _check_channels(config)
    _check_added(config)
    sample_size(config)


def is_xl(unet_config: Mapping[str, Any]) -> bool:
    """Whether this is a UNet of Stable Diffusion XL, which takes a pooled embedding and sizes."""
    return unet_config.get("addition_embed_type") == _XL


def pooled_width(unet_config: Mapping[str, Any]) -> int | None:
    """The width P of the pooled embedding that a supported UNet takes; None for one that takes none."""
    if not is_xl(unet_config):
        return None
    sizes = TIME_IDS * unet_config["addition_time_embed_dim"]
    return int(unet_config["projection_class_embeddings_input_dim"] - sizes)


def context_width(unet_config: Mapping[str, Any]) -> int:
    """The width D of the text context [B, T, D], of a UNet that is supported."""
    config = {**_defaults(), **unet_config}
    return next(iter(_attended(config, "cross_attention_dim")))


def sample_size(unet_config: Mapping[str, Any]) -> int:
    """The side of the latents that the UNet is made for. Raises ModelError if it does not say one number."""
    value: Any = unet_config.get("sample_size")
    sides = value if fields.is_list(value) and value else [value]
    if not all(fields.is_count(side) and side == sides[0] for side in sides):
        raise _unsupported(
            "sample_size", value, "give one whole number in its configuration: image side / 8, 64 for 512 x 512"
        )
    return int(sides[0])


def _defaults() -> dict[str, Any]:
    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _check_neutral(config: Mapping[str, Any]) -> None:
    for name, meaning in _NEUTRAL_FIELDS.items():
        value = config[name]
        if any(value) if fields.is_list(value) else value:
            raise _unsupported(name, value, f"not supported: {meaning}")
    if config["only_cross_attention"] is None:
        raise _unsupported("only_cross_attention", None, "give false in its configuration")
    if config["num_attention_heads"] is not None:
        raise _unsupported(
            "num_attention_heads",
            config["num_attention_heads"],
            "diffusers reads the number of heads from attention_head_dim: move it there and give null here",
        )


def _check_blocks(config: Mapping[str, Any]) -> None:
    for name, allowed in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        value = config[name]
        if not fields.is_list(value) or not value:
            raise _unsupported(name, value, "give a list with one block type per block")
        for block in value:
            _check_block(name, block, allowed)
    _check_block("mid_block_type", config["mid_block_type"], _MID)
    down, up = config["down_block_types"], config["up_block_types"]
    if len(up) != len(down):
        raise _unsupported("up_block_types", up, f"down_block_types has {len(down)}, give as many")
    if not _attention(config):
        raise _unsupported("down_block_types", down, "there is no cross-attention to cut at")


def _check_block(name: str, block: Any, allowed: tuple[str | None, ...]) -> None:
    if not isinstance(block, str | None) or block not in allowed:
        known = ", ".join(str(other) for other in allowed)
        raise _unsupported(name, block, f"this block type is not supported, only {known}")


def _block_kinds(config: Mapping[str, Any]) -> dict[str, Kind]:
    """Fields that may have one value for each block."""
    n = len(config["down_block_types"])
    layers = one_or_list(COUNT, n)
    depths = fields.list_of(COUNT)
    nested = Kind("a list of whole numbers", lambda value: COUNT.accepts(value) or depths.accepts(value))
    return {
        "block_out_channels": fields.list_of(COUNT, n),
        "layers_per_block": layers,
        "only_cross_attention": one_or_list(FLAG, n),
        # diffusers wants the second if an entry of the first is a list, and says so.
        "transformer_layers_per_block": one_or_list(nested, n),
        "reverse_transformer_layers_per_block": optional(fields.list_of(nested, n)),
        "attention_head_dim": one_or_list(optional(COUNT), n),
        "cross_attention_dim": one_or_list(optional(COUNT), n),
    }


def _attention(config: Mapping[str, Any]) -> set[int]:
    """Which blocks have cross-attention, counted from the first down block; an up block shares its number with the
    down block of its size, and the middle block with the last."""
    last = len(config["down_block_types"]) - 1
    down = {i for i, block in enumerate(config["down_block_types"]) if "CrossAttn" in block}
    up = {last - i for i, block in enumerate(config["up_block_types"]) if "CrossAttn" in block}
    return down | up | ({last} if "CrossAttn" in (config["mid_block_type"] or "") else set())


def _attended(config: Mapping[str, Any], name: str) -> set[Any]:
    """The values of a field for the blocks that have cross-attention; diffusers ignores those of others."""
    value = config[name]
    return {value[i] for i in _attention(config)} if fields.is_list(value) else {value}


def _check_heads(config: Mapping[str, Any]) -> None:
    if None in _attended(config, "attention_head_dim"):
        raise _unsupported(
            "attention_head_dim", config["attention_head_dim"], "give the number of heads, which diffusers reads here"
        )


def _check_groups(config: Mapping[str, Any]) -> None:
    groups = config["norm_num_groups"]
    if any(channels % groups for channels in config["block_out_channels"]):
        raise _unsupported(
            "norm_num_groups", groups, f"it must divide block_out_channels = {list(config['block_out_channels'])}"
        )


def _check_context_width(config: Mapping[str, Any]) -> None:
    value, widths = config["cross_attention_dim"], _attended(config, "cross_attention_dim")
    if None in widths:
        raise _unsupported("cross_attention_dim", value, "give the width of the text encoder in its configuration")
    if len(widths) > 1:
        raise _unsupported("cross_attention_dim", value, "all layers must share one context, so one width")


def _check_channels(config: Mapping[str, Any]) -> None:
    channels, latent = config["in_channels"], config["out_channels"]
    if channels not in (latent, 2 * latent, 2 * latent + 1):
        wanted = (
            f"{latent} (text to image), {2 * latent} (InstructPix2Pix) or {2 * latent + 1} (inpainting) for "
            f"out_channels = {latent}"
        )
        raise _unsupported("in_channels", channels, f"other image conditioning is not supported, only {wanted}")


def _check_added(config: Mapping[str, Any]) -> None:
    """The pooled embedding and six sizes of Stable Diffusion XL."""
    if not is_xl(config):
        return
    width, total = config["addition_time_embed_dim"], config["projection_class_embeddings_input_dim"]
    for name, value in (("addition_time_embed_dim", width), ("projection_class_embeddings_input_dim", total)):
        if not fields.is_count(value):
            raise _unsupported(name, value, "in its configuration, give a whole number above 0")
    if is_refiner(config):
        raise _unsupported(
            "projection_class_embeddings_input_dim",
            total,
            "this is the refiner of Stable Diffusion XL, which takes an aesthetic score: export the base model",
        )
    if total <= TIME_IDS * width:
        raise _unsupported(
            "projection_class_embeddings_input_dim", total, f"give more than {TIME_IDS} times addition_time_embed_dim"
        )
    if config["in_channels"] == 2 * config["out_channels"]:
        raise _unsupported(
            "in_channels", config["in_channels"], "InstructPix2Pix of Stable Diffusion XL is not supported"
        )


def is_refiner(unet_config: Mapping[str, Any]) -> bool:
    """Whether a UNet that `is_xl` takes five sizes, one of them a score, and the pooled embedding of its only text
    encoder, which is as wide as the context."""
    width, total = (
        unet_config.get(name) for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    )
    if not is_xl(unet_config) or width is None or total is None:
        return False
    return bool(total == (TIME_IDS - 1) * width + context_width(unet_config))


def _unsupported(name: str, value: Any, reason: str) -> ModelError:
    return fields.unsupported(_UNET, name, value, reason)
