"""Small ControlNets with random weights, zero convolutions included: as they are made, they add nothing."""

from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel

from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.tiny import UNET_CONFIG, build_tiny

FIELDS = (
    *("down_block_types", "mid_block_type", "block_out_channels", "layers_per_block", "norm_num_groups"),
    *("cross_attention_dim", "attention_head_dim"),
)
CONFIG: dict[str, Any] = {
    **{name: UNET_CONFIG[name] for name in FIELDS},
    "conditioning_embedding_out_channels": [8, 8, 16, 16],
}


def controlnet(seed: int, **changes: Any) -> ControlNetModel:
    """A ControlNet for the built-in model `tiny`."""
    made = ControlNetModel.from_config({**CONFIG, **changes})
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            wide = "controlnet_down" in name or "controlnet_mid" in name
            if not name.endswith("weight") or wide:
                scale = 0.1 if wide else 0.02
                parameter.copy_(
                    parameter + torch.from_numpy(rng.normal(0, scale, tuple(parameter.shape)).astype(np.float32))
                )
            else:
                parameter.mul_(float(rng.uniform(0.8, 1.2)))
    return made.eval().requires_grad_(False)


def controlled(in_channels: int = 4) -> Checkpoint:
    """The built-in model `tiny` with two ControlNets."""
    checkpoint = build_tiny(in_channels=in_channels)
    torch.manual_seed(0)
    checkpoint.controlnets = {
        "canny": controlnet(1),
        "depth": controlnet(2, controlnet_conditioning_channel_order="bgr", layers_per_block=1),
    }
    return checkpoint
