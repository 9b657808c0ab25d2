"""The built-in model `tiny`: a complete Stable Diffusion with random weights, small enough for tests.

Its images are noise, but every code path is that of a real model. The same seed gives the same bytes on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.random_model import RandomModel
from ebca.export.checkpoint.saving import save_pipeline
from ebca.export.checkpoint.tokenizer import CLIP_MAX_LENGTH

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 16,  # 128 x 128 pixels
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
}
VAE_CONFIG: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 32, 32],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "scaling_factor": 0.18215,
}
TEXT_ENCODER_CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CLIP_MAX_LENGTH,
    "projection_dim": 32,
    "hidden_act": "quick_gelu",
}

# Each of these is one token.
_WORD_LIST = """
a an and the of in on at with by from to is are as for over under near behind his her its one two three no
not man woman girl boy child person face hair eyes hand king queen knight astronaut robot wizard princess
cat dog lion tiger bear horse bird rabbit fox wolf elephant turtle frog mouse sheep cow fish dragon monkey
panda crown hat glasses suit dress shirt bow ball bench book clock balloon backpack chair table cup bowl apple
orange car bus train boat bike castle house bridge tower street city beach forest mountain river lake sea sky
sun moon snow rain night day sunset flower tree garden grass field room kitchen park road water fire light
red green blue yellow black white purple pink brown gray golden silver old young big small beautiful
photo picture painting drawing portrait sketch oil watercolor monet van gogh style art artwork digital anime
sitting standing running walking riding playing wearing holding eating sleeping looking flying
high quality detailed realistic blurry low bad ugly cartoon fantasy landscape
"""
WORDS: tuple[str, ...] = tuple(_WORD_LIST.split())


TINY: Final = RandomModel("tiny", UNET_CONFIG, VAE_CONFIG, TEXT_ENCODER_CONFIG, WORDS)


def build_tiny(seed: int = 0, *, in_channels: int = 4) -> Checkpoint:
    """Build the model, see `RandomModel.build`."""
    return TINY.build(seed, in_channels=in_channels)


def save_tiny(folder: str | Path, seed: int = 0, *, in_channels: int = 4) -> Path:
    """Write the model as a pipeline folder in diffusers format; returns the folder."""
    return save_pipeline(TINY, folder, seed, in_channels=in_channels)
