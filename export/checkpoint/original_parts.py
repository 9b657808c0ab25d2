"""The networks of a single file in the original layout: which of its tensors belong to each, and in which spelling."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ebca.errors import ModelError
from ebca.export.checkpoint.original_names import (
    OPEN_CLIP_PROJECTION,
    ema_name,
    open_clip_name,
    unet_names,
    vae_names,
)
from ebca.export.checkpoint.tensor_file import Place, TensorFile, left_out

UNET_PREFIX = "model.diffusion_model."
EMA_PREFIX = "model_ema."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model."
XL_TEXT_PREFIXES = ("conditioner.embedders.0.", "conditioner.embedders.1.")
"""The text encoders of Stable Diffusion XL."""
_CLIP_PREFIXES = ("transformer.text_model.", "transformer.")
_OPEN_CLIP_PREFIX = "model."
_PROJECTION = "text_projection.weight"
# Of the text encoder: for whole-text embeddings, or made by the network itself.
_UNUSED_TEXT = re.compile(
    r".*(text_projection(\.weight)?|logit_scale|position_ids|attn_mask|scale_weight|scaled_fp8|input_scale)"
)
_TEXT_LAYER = re.compile(r"(?:transformer\.resblocks|encoder\.layers)\.(\d+)\..*")
_UNUSED_VAE = re.compile(r"(loss|model_ema|discriminator)\..*|.*scale_weight|.*input_scale")
_UNUSED_UNET = re.compile(r".*scale_weight|.*scaled_fp8|.*input_scale")


@dataclass(frozen=True)
class Read:
    """A network of a file, and lines about what was found and left out."""

    network: Any
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnetWeights:
    """Which of a file's UNet weights are taken.

    Attributes:
        prefix: of the names of the plain weights.
        averaged: take the averaged copy (EMA).
    """

    prefix: str
    averaged: bool = False

    def name(self, inner: str) -> str:
        """The file's name of a tensor, by its name without a prefix."""
        return ema_name(UNET_PREFIX + inner) if self.averaged else self.prefix + inner


def read_unet(file: TensorFile, weights: UnetWeights, config: Mapping[str, Any]) -> Read:
    """The UNet. A tensor that the architecture has no place for means that it is another one, which is refused."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
    names = unet_names((name for name, _ in unet.named_parameters()), config)
    used = file.fill(unet, {ours: Place((weights.name(inner),)) for ours, inner in names.items()}, "UNet")
    if weights.prefix and not weights.averaged:
        extra = [
            name
            for name in file.names
            if name.startswith(weights.prefix) and name not in used and not _UNUSED_UNET.fullmatch(name)
        ]
        if extra:
            raise ModelError(
                f"the UNet in {file.path.name} does not fit the architecture: it has {len(extra)} tensors too many, "
                f"first {extra[0]}"
            )
    return Read(unet)


def read_vae(file: TensorFile, config: Mapping[str, Any], prefix: str = VAE_PREFIX) -> Read | None:
    """The VAE, with any spelling of its attention; None if the file has none under this prefix."""
    inside = [name for name in file.names if name.startswith(prefix)]
    if not inside:
        return None
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(config))
    spellings = vae_names((name for name, _ in vae.named_parameters()), config)
    places = {ours: Place(tuple(prefix + one for one in theirs)) for ours, theirs in spellings.items()}
    used = file.fill(vae, places, "VAE")
    extra = [name for name in inside if name not in used and not _UNUSED_VAE.fullmatch(name.removeprefix(prefix))]
    return Read(vae, left_out(file, "VAE", extra))


def read_text_encoder(
    file: TensorFile, config: Mapping[str, Any], within: str = TEXT_PREFIX, *, projection: bool = False
) -> Read | None:
    """CLIP, or open CLIP, whose projections are stored stacked; None if the file has no text encoder.

    A stored model may have more layers than the architecture uses.

    Args:
        file: the checkpoint.
        config: as in transformers.
        within: prefix of all its tensors.
        projection: with the projection of a whole text.
    """
    inside = [name for name in file.names if name.startswith(within)]
    if not inside:
        return None
    network = CLIPTextModelWithProjection if projection else CLIPTextModel
    # Not on the meta device: its position_ids are a buffer that no file contains.
    model: nn.Module = network(CLIPTextConfig(**config))
    names = [(name, name.removeprefix("text_model.")) for name, _ in model.named_parameters()]
    clip, opened = (within + one for one in _CLIP_PREFIXES), within + _OPEN_CLIP_PREFIX
    prefix = next((one for one in clip if f"{one}embeddings.token_embedding.weight" in file), None)
    if prefix is not None:
        # transformers keeps the projection beside the level "text_model".
        top = prefix.removesuffix("text_model.")
        places = {name: Place(((top if inner == _PROJECTION else prefix) + inner,)) for name, inner in names}
    elif f"{opened}token_embedding.weight" in file:
        prefix = opened
        places = {name: _open_clip_place(prefix, inner) for name, inner in names}
    else:
        raise ModelError(
            f"the text encoder in {file.path.name} is neither CLIP nor open CLIP in a known layout, "
            f"first tensor {inside[0]}",
            "pass the model as a folder in diffusers format",
        )
    used = file.fill(model, places, "text encoder")
    layers = int(config["num_hidden_layers"])
    extra = [name for name in inside if name not in used and not _unused_text(name.removeprefix(prefix), layers)]
    return Read(model, left_out(file, "text encoder", extra))


def _open_clip_place(prefix: str, inner: str) -> Place:
    if inner == _PROJECTION:
        return Place((prefix + OPEN_CLIP_PROJECTION,), transposed=True)
    theirs, third = open_clip_name(inner)
    return Place((prefix + theirs,), third)


def _unused_text(inner: str, layers: int) -> bool:
    layer = _TEXT_LAYER.fullmatch(inner)
    return bool(_UNUSED_TEXT.fullmatch(inner)) or (layer is not None and int(layer[1]) >= layers)
