"""Small ControlNets with random weights, zero convolutions included: as they are made, they add nothing."""

from typing import Any

import torch
from diffusers import ControlNetModel

from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.random_weights import random_parameter
from ebca.export.checkpoint.tiny import UNET_CONFIG, build_tiny

_FIELDS = (
    *("down_block_types", "mid_block_type", "block_out_channels", "layers_per_block", "norm_num_groups"),
    *("cross_attention_dim", "attention_head_dim"),
)
CONFIG: dict[str, Any] = {
    **{name: UNET_CONFIG[name] for name in _FIELDS},
    "conditioning_embedding_out_channels": [8, 8, 16, 16],
}


def controlnet(seed: int, **changes: Any) -> ControlNetModel:
    """A ControlNet for the built-in model `tiny`."""
    made = ControlNetModel.from_config({**CONFIG, **changes})
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.from_numpy(random_parameter(name, tuple(parameter.shape), seed)))
    return made.eval().requires_grad_(False)


def controlnets() -> dict[str, ControlNetModel]:
    """Two of them, which differ in weights and in the order of their image's channels."""
    return {"canny": controlnet(1), "depth": controlnet(2, controlnet_conditioning_channel_order="bgr")}


def controlled(in_channels: int = 4) -> Checkpoint:
    """The built-in model `tiny` with `controlnets`."""
    checkpoint = build_tiny(in_channels=in_channels)
    checkpoint.controlnets = controlnets()
    return checkpoint
