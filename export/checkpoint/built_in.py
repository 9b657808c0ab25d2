"""The built-in models by name: `tiny` and `tiny-xl`, and those of the sizes of Stable Diffusion 1.5 and XL, which need
no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ebca.export.checkpoint.defaults import XL_SCHEDULER_CONFIG
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

RANDOM_SDXL: Final = RandomModel(
    name="random-sdxl",
    unet={
        "sample_size": 128,  # 1024 x 1024 pixels
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "norm_num_groups": 32,
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae={**RANDOM_SD_1_5.vae, "sample_size": 1024, "scaling_factor": 0.13025},
    text_encoder=RANDOM_SD_1_5.text_encoder,
    words=WORDS,
    text_encoder_2={
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "max_position_embeddings": CLIP_MAX_LENGTH,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
    scheduler=XL_SCHEDULER_CONFIG,
)

BUILT_IN: Final[Mapping[str, RandomModel]] = {
    model.name: model for model in (TINY, TINY_XL, RANDOM_SD_1_5, RANDOM_SDXL)
}
