"""The built-in models by name: `tiny` and `tiny-xl`, and those of the sizes of Stable Diffusion 1.5 and XL, which need
no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ebca.export.checkpoint.architectures import STABLE_DIFFUSION_1, STABLE_DIFFUSION_XL
from ebca.export.checkpoint.random_model import RandomModel
from ebca.export.checkpoint.tiny import TINY, WORDS
from ebca.export.checkpoint.tiny_xl import TINY_XL

# Words instead of the 49,408 tokens of CLIP.
RANDOM_SD_1_5: Final = RandomModel(
    "random-sd-1.5",
    STABLE_DIFFUSION_1.unet,
    STABLE_DIFFUSION_1.vae,
    STABLE_DIFFUSION_1.text_encoder,
    WORDS,
)

RANDOM_SDXL: Final = RandomModel(
    "random-sdxl",
    STABLE_DIFFUSION_XL.unet,
    STABLE_DIFFUSION_XL.vae,
    STABLE_DIFFUSION_XL.text_encoder,
    WORDS,
    text_encoder_2=STABLE_DIFFUSION_XL.text_encoder_2,
    scheduler=STABLE_DIFFUSION_XL.scheduler,
)

BUILT_IN: Final[Mapping[str, RandomModel]] = {
    model.name: model for model in (TINY, TINY_XL, RANDOM_SD_1_5, RANDOM_SDXL)
}
