"""The built-in models by name: `tiny` and `tiny-xl`, and one of the size of Stable Diffusion 1.5, which needs no
network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ebca.export.checkpoint.random_model import RandomModel
from ebca.export.checkpoint.tiny import TINY, WORDS
from ebca.export.checkpoint.tiny_xl import TINY_XL
from ebca.export.checkpoint.tokenizer import CLIP_MAX_LENGTH

RANDOM_SD_1_5: Final = RandomModel(
    name="random-sd-1.5",
    unet={
        "sample_size": 64,  # 512 x 512 pixels
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    vae={
        "sample_size": 512,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    },
    text_encoder={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": CLIP_MAX_LENGTH,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
    # Instead of the 49,408 tokens of CLIP.
    words=WORDS,
)

BUILT_IN: Final[Mapping[str, RandomModel]] = {model.name: model for model in (TINY, TINY_XL, RANDOM_SD_1_5)}
