"""The three networks of `shapes`, its tokenizer, and its folder in diffusers format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ebca.bench.alignment.scenes import COLORS, RELATIONS, SHAPES, SIZE
from ebca.export.checkpoint.word_tokenizer import write_word_tokenizer

MAX_LENGTH = 24
WORDS = ("a", "an", "and", *COLORS, *SHAPES, *dict.fromkeys(" ".join(RELATIONS).split()))

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


@dataclass
class Networks:
    """The networks and the tokenizer."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    tokenizer: CLIPTokenizer


def build(tokenizer_folder: Path, seed: int) -> Networks:
    """Untrained networks: a VAE to a quarter of the size, a text model with two layers, a UNet with 7
    cross-attentions."""
    torch.manual_seed(seed)
    write_word_tokenizer(tokenizer_folder, WORDS, MAX_LENGTH)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96, 112),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=128,
        attention_head_dim=2,  # diffusers' name for the number of heads here
    )
    # At sequence lengths of 16 and 64, plain attention trains a third faster on a CPU than fused attention.
    unet.set_attn_processor(AttnProcessor())
    return Networks(vae, text_encoder, unet, tokenizer)


def save(networks: Networks, folder: Path) -> None:
    """Write a StableDiffusionPipeline folder with float16 weights; this rounds the networks to float16."""
    for module in (networks.vae, networks.text_encoder, networks.unet):
        module.half()
    pipeline(networks, PNDMScheduler(skip_prk_steps=True, **SCHEDULER)).save_pretrained(folder)
    for module in (networks.vae, networks.text_encoder, networks.unet):
        module.float()


def sampler(networks: Networks) -> StableDiffusionPipeline:
    """A pipeline that samples with DDIM, to inspect the model during training."""
    made = pipeline(networks, DDIMScheduler(clip_sample=False, **SCHEDULER))
    made.set_progress_bar_config(disable=True)
    return made


def pipeline(networks: Networks, scheduler: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=networks.vae,
        text_encoder=networks.text_encoder,
        tokenizer=networks.tokenizer,
        unet=networks.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
