"""Checkpoints that were distilled to few steps: what they expect by default, and guidance as an input of the UNet.

A latent consistency model is told its guidance scale w together with the timestep. Its UNet adds a projection of an
embedding of w - 1 to the embedding of the timestep, before the first linear layer W, b of the time embedding:

    W (t + P w_emb) + b  =  W t + (b + W P w_emb)

So for one w it is an ordinary UNet with another bias. Such a UNet needs no classifier-free guidance.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from ebca.engines.contract.manifest import GUIDANCE_SCALE
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.options import EMBEDDED_GUIDANCE

XL_GUIDANCE_SCALE = 5.0
"""What diffusers' pipelines of Stable Diffusion XL take by default."""

_CLASSES = ("LCMScheduler", "TCDScheduler")


def is_distilled(scheduler_config: Mapping[str, Any] | None) -> bool:
    """Whether a checkpoint's own scheduler says that it needs few steps and no guidance."""
    return scheduler_config is not None and scheduler_config.get("_class_name") in _CLASSES


def default_guidance(checkpoint: Checkpoint, asked: float | None) -> float:
    """The guidance scale of a manifest: what was asked for, else what the checkpoint says.

    Args:
        asked: of the export; None: nothing was asked for.
    """
    if checkpoint.embedded_guidance is not None:
        return 1.0
    if asked is not None:
        return asked
    if is_distilled(checkpoint.scheduler_config):
        return 1.0
    return XL_GUIDANCE_SCALE if checkpoint.is_xl else GUIDANCE_SCALE


def with_embedded_guidance(checkpoint: Checkpoint, asked: float | None) -> Checkpoint:
    """The checkpoint with a UNet that has one guidance scale built in, if its UNet takes one; else the same checkpoint.

    Nothing is changed in place.
    """
    unet = checkpoint.unet
    if not unet.config.get("time_cond_proj_dim"):
        return checkpoint
    # Stable Diffusion XL has no pipeline of its own for such UNets.
    usual = XL_GUIDANCE_SCALE if checkpoint.is_xl else EMBEDDED_GUIDANCE
    scale = usual if asked is None else asked
    notice = (
        f"this UNet is told its guidance scale: {scale:g} is built in, another one needs an export with "
        "--guidance-scale; images take one evaluation row each"
    )
    return replace(
        checkpoint,
        unet=_folded(unet, scale),
        embedded_guidance=scale,
        notices=(*checkpoint.notices, notice),
    )


def _folded(unet: UNet2DConditionModel, scale: float) -> UNet2DConditionModel:
    folded: Any = copy.copy(unet)
    folded._modules = dict(unet._modules)
    folded.time_embedding = copy.deepcopy(unet.time_embedding)
    first = folded.time_embedding.linear_1
    with torch.no_grad():
        projected = folded.time_embedding.cond_proj.weight.double() @ _embedding(
            scale - 1, folded.config["time_cond_proj_dim"]
        )
        first.bias.add_((first.weight.double() @ projected).to(first.bias.dtype))
    folded.time_embedding.cond_proj = None
    folded.register_to_config(time_cond_proj_dim=None)
    assert isinstance(folded, UNet2DConditionModel)
    return folded


def _embedding(value: float, width: int) -> torch.Tensor:
    """[width] float64: sines and cosines of 1000 * value at falling frequencies, as diffusers' pipelines make it."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * value * frequencies
    embedded = torch.cat([torch.sin(angles), torch.cos(angles)])
    return torch.nn.functional.pad(embedded, (0, width - len(embedded)))
