"""The built-in model `tiny-xl`: a complete Stable Diffusion XL with random weights, small enough for tests.

Its structure is that of the real one: a first level without attention, transformers of growing depth, two text encoders
of different widths and depths. Widths that happen to be equal there differ here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ebca.export.checkpoint.defaults import XL_SCHEDULER_CONFIG
from ebca.export.checkpoint.random_model import RandomModel
from ebca.export.checkpoint.saving import save_pipeline
from ebca.export.checkpoint.tiny import VAE_CONFIG, WORDS
from ebca.export.checkpoint.tokenizer import CLIP_MAX_LENGTH

_WIDTH, _WIDTH_2, _POOLED = 32, 48, 40
_TIME_DIM, _SIZES = 8, 6

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 16,  # 128 x 128 pixels
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1, 2],
    "norm_num_groups": 8,
    "attention_head_dim": [2, 4, 8],
    "use_linear_projection": True,
    "cross_attention_dim": _WIDTH + _WIDTH_2,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": _TIME_DIM,
    "projection_class_embeddings_input_dim": _SIZES * _TIME_DIM + _POOLED,
}
_TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": _WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CLIP_MAX_LENGTH,
    "projection_dim": _WIDTH,
    "hidden_act": "quick_gelu",
}
_TEXT_ENCODER_2: dict[str, Any] = {
    **_TEXT_ENCODER,
    "hidden_size": _WIDTH_2,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "projection_dim": _POOLED,
    "hidden_act": "gelu",
}

TINY_XL: Final = RandomModel(
    "tiny-xl",
    UNET_CONFIG,
    {**VAE_CONFIG, "scaling_factor": 0.13025},
    _TEXT_ENCODER,
    WORDS,
    text_encoder_2=_TEXT_ENCODER_2,
    scheduler=XL_SCHEDULER_CONFIG,
)


def save_tiny_xl(folder: str | Path, seed: int = 0, *, in_channels: int = 4) -> Path:
    """Write the model as a pipeline folder in diffusers format; returns the folder."""
    return save_pipeline(TINY_XL, folder, seed, in_channels=in_channels)
