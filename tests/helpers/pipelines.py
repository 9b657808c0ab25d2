"""The built-in model in diffusers' pipelines, and input images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image
from transformers import CLIPTokenizer

from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG
from ebca.export.checkpoint.tiny import build_tiny, save_tiny
from ebca.export.checkpoint.tiny_xl import TINY_XL
from ebca.export.checkpoint.tokenizer import CLIP_MAX_LENGTH
from ebca.export.checkpoint.word_tokenizer import write_word_tokenizer
from ebca.export.scheduler_choice import SCHEDULERS


def tiny_pipeline(pipeline: Any, folder: Path, *, in_channels: int = 4, **parts: Any) -> Any:
    """An instance of a diffusers pipeline class with the built-in model. Writes its tokenizer to `folder`; `parts` are
    what the class takes beside it."""
    tiny = build_tiny(in_channels=in_channels)
    save_tiny(folder)
    made = pipeline(
        vae=tiny.vae,
        text_encoder=tiny.text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=tiny.unet,
        scheduler=diffusers_scheduler("pndm"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )
    made.set_progress_bar_config(disable=True)
    return made


def tiny_xl_pipeline(pipeline: Any, folder: Path, *, in_channels: int = 4) -> Any:
    """An instance of a diffusers pipeline class of Stable Diffusion XL with `tiny-xl` and its own scheduler. Writes its
    tokenizer to `folder`."""
    tiny = TINY_XL.build(in_channels=in_channels)
    write_word_tokenizer(folder, TINY_XL.words, CLIP_MAX_LENGTH)
    made = pipeline(
        vae=tiny.vae,
        text_encoder=tiny.text_encoder,
        text_encoder_2=tiny.text_encoder_2,
        tokenizer=CLIPTokenizer.from_pretrained(folder),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder, pad_token=TINY_XL.pad_token_2),
        unet=tiny.unet,
        scheduler=EulerDiscreteScheduler.from_config(dict(TINY_XL.scheduler)),
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def runner(pipeline: Any) -> Callable[..., np.ndarray]:
    """A function that calls a pipeline with our names of schedulers and our seeds. It returns latents by default."""

    def run(prompt: Any, *, scheduler: str = "pndm", seed: int | list[int] = 1, **kwargs: Any) -> np.ndarray:
        pipeline.scheduler = diffusers_scheduler(scheduler)
        kwargs = {"num_inference_steps": 5, "output_type": "latent"} | kwargs
        made = pipeline(prompt, generator=generators(seed), **kwargs).images
        return made if isinstance(made, np.ndarray) else made.numpy()

    return run


def diffusers_scheduler(name: str) -> Any:
    """A new diffusers scheduler for the built-in model, by our name."""
    spec = SCHEDULERS[name]
    return spec.diffusers_class.from_config({**SCHEDULER_CONFIG, **spec.overrides})


def generators(seed: int | list[int]) -> Any:
    """Generators for a diffusers pipeline: one for all images, or one per image."""
    made = [torch.Generator("cpu").manual_seed(s) for s in ([seed] if isinstance(seed, int) else seed)]
    return made[0] if isinstance(seed, int) else made


def sample_image(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A smooth image with random colours; size is (height, width)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)


def mask_image(box: tuple[int, int, int, int] = (16, 8, 50, 42), size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A black mask with a white box (left, top, right, bottom); size is (height, width)."""
    mask = Image.new("L", size[::-1])
    mask.paste(255, box)
    return mask
