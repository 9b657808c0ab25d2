"""Names of tensors in the original layout of Stable Diffusion, in which single files are stored.

Each function maps the parameter names of diffusers or transformers to those of the original, so a reader asks for
exactly the tensors that its network has, and a writer knows where each of them belongs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ebca.engines.adapters.compvis import module_name

VAE_ATTENTION = {
    "group_norm": ("norm", "group_norm"),
    "to_q": ("q", "to_q", "query"),
    "to_k": ("k", "to_k", "key"),
    "to_v": ("v", "to_v", "value"),
    "to_out.0": ("proj_out", "to_out.0", "proj_attn"),
}
"""A part of the VAE's attention, and its names in files: the original's, today's and yesterday's of diffusers."""

_OPEN_CLIP_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_PROJECTION = "text_projection"
"""What open CLIP calls the projection of a whole text, which it stores transposed."""
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
PROJECTIONS = ("q", "k", "v")
"""The order in which open CLIP stacks the projections of an attention in one tensor."""


def unet_names(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers' name of each UNet parameter -> the original's, without "model.diffusion_model."."""
    layers = config["layers_per_block"]
    attentive = {level for level, kind in enumerate(config["up_block_types"]) if "CrossAttn" in kind}
    return {name: _unet_name(name, layers, attentive) for name in names}


def _unet_name(name: str, layers: int, attentive: Collection[int]) -> str:
    module, _, kind = name.rpartition(".")
    place = module_name(module, layers, attentive)
    if place is None:
        raise ValueError(f"the original layout has no place for {name}")
    return f"{place}.{kind}"


def vae_names(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """diffusers' name of each VAE parameter -> the names that files have for it, the original's first; all of them
    without "first_stage_model."."""
    last = len(config["block_out_channels"]) - 1
    return {name: _vae_spellings(name, last) for name in names}


def _vae_spellings(name: str, last: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*_attention_spellings(_vae_name(name, last)), *_attention_spellings(name))))


def _attention_spellings(name: str) -> tuple[str, ...]:
    """A name as it is, or one for each spelling of a part of an attention."""
    for ours, spellings in VAE_ATTENTION.items():
        for module in ("mid.attn_1", "mid_block.attentions.0"):
            if f"{module}.{ours}." in name:
                return tuple(name.replace(f"{module}.{ours}.", f"{module}.{one}.") for one in spellings)
    return (name,)


def _vae_name(name: str, last: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    # The original counts the decoder's levels from the image, diffusers from the latents.
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)


def open_clip_name(name: str) -> tuple[str, int | None]:
    """transformers' name of a text encoder's parameter, without "text_model." -> open CLIP's, and which third of that
    tensor it is: 0 for queries, 1 for keys, 2 for values, None for all of it."""
    if name in _OPEN_CLIP_TOP:
        return _OPEN_CLIP_TOP[name], None
    found = _LAYER.fullmatch(name)
    if found is None:
        raise ValueError(f"open CLIP has no place for {name}")
    layer, module, kind = found.groups()
    block = f"transformer.resblocks.{layer}"
    for index, letter in enumerate(PROJECTIONS):
        if module == f"self_attn.{letter}_proj":
            return f"{block}.attn.in_proj_{kind}", index
    return f"{block}.{_OPEN_CLIP_BLOCK[module]}.{kind}", None


def ema_name(name: str) -> str:
    """The averaged copy of a UNet tensor, by its name with "model.diffusion_model." before it."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")
