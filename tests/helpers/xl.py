"""UNets of Stable Diffusion XL for tests."""

from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from ebca.export.checkpoint.random_weights import random_parameter

POOLED, WIDTH = 24, 64

BLOCKS: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "block_out_channels": [16, 32, 64],
    "norm_num_groups": 8,
    "attention_head_dim": [1, 2, 4],
    "cross_attention_dim": WIDTH,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + POOLED,
}
"""Blocks and depths of the real UNet, and small widths."""


def narrow_unet() -> UNet2DConditionModel:
    """A UNet with all 70 cross-attention layers of the real one, and random weights."""
    unet: Any = UNet2DConditionModel.from_config(BLOCKS)
    state = {n: torch.from_numpy(random_parameter(n, tuple(p.shape))) for n, p in unet.named_parameters()}
    unet.load_state_dict(state)
    return unet.eval().requires_grad_(False)


def call_inputs(
    unet: UNet2DConditionModel, rows: int, contexts: int, tokens: int, size: tuple[int, int], seed: int = 0
) -> dict[str, np.ndarray]:
    """Random inputs for one evaluation, with sizes that float16 cannot hold."""
    config = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((rows, config.in_channels, *size), np.float32),
        "timestep": rng.uniform(1, 999, rows).astype(np.float32),
        "contexts": rng.standard_normal((rows, contexts, tokens, config.cross_attention_dim), np.float32),
        "text_embeds": rng.standard_normal((rows, pooled), np.float32),
        "time_ids": rng.integers(0, 4096, (rows, 6)).astype(np.float32),
    }
