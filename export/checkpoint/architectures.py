"""The configurations of Stable Diffusion 1.x, 2.x and XL, which single files lack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG, XL_SCHEDULER_CONFIG
from ebca.export.checkpoint.supported import context_width

_BLOCKS: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
}
_VAE: dict[str, Any] = {
    "sample_size": 512,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
_CLIP: dict[str, Any] = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
_CLIP_L: dict[str, Any] = {
    **_CLIP,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}


@dataclass(frozen=True)
class Architecture:
    """One generation of Stable Diffusion.

    Attributes:
        name: for messages.
        unet, vae, text_encoder: configurations as in diffusers and transformers.
        pad_token: what fills prompts up.
        side_if_v: side of the latents of a model that predicts v; None: the UNet's `sample_size`.
        predicts: what models without any hint predict; None: noise.
        text_encoder_2: of the second text encoder; None: there is one.
        pad_token_2: what fills its prompts up.
        scheduler: configuration of the default scheduler.
    """

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    pad_token: str = "<|endoftext|>"
    side_if_v: int | None = None
    predicts: str | None = None
    text_encoder_2: Mapping[str, Any] | None = None
    pad_token_2: str = "!"
    scheduler: Mapping[str, Any] = field(default_factory=lambda: SCHEDULER_CONFIG)

    @property
    def width(self) -> int:
        """Of the text context."""
        return context_width(self.unet)


STABLE_DIFFUSION_1: Final = Architecture(
    name="Stable Diffusion 1.x",
    unet={**_BLOCKS, "cross_attention_dim": 768, "attention_head_dim": 8},
    vae=_VAE,
    text_encoder=_CLIP_L,
)
STABLE_DIFFUSION_2: Final = Architecture(
    name="Stable Diffusion 2.x",
    unet={
        **_BLOCKS,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    vae=_VAE,
    # 23 of open CLIP's 24 layers: the UNet was trained on what enters the last one.
    text_encoder={
        **_CLIP,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "projection_dim": 512,
        "hidden_act": "gelu",
    },
    pad_token="!",
    side_if_v=96,
    predicts="v_prediction",
)
STABLE_DIFFUSION_XL: Final = Architecture(
    name="Stable Diffusion XL",
    unet={
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
    text_encoder=_CLIP_L,
    text_encoder_2={
        **_CLIP,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
    scheduler=XL_SCHEDULER_CONFIG,
)
KNOWN: Final = (STABLE_DIFFUSION_1, STABLE_DIFFUSION_2, STABLE_DIFFUSION_XL)
