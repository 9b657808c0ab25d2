"""Small images of latents during sampling, by one linear map per engine instead of the VAE's decoder."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ebca.runtime.components import Components
from ebca.runtime.images.outputs import to_pil
from ebca.runtime.schema import parameters as rules

# What the map is fitted to: enough positions for a few numbers, little enough to encode in a moment.
_IMAGES, _SIDE = 8, 12
_COARSEST, _FINEST = 2, 6


class Preview:
    """Shows latents as images without the VAE: red, green and blue are weighted sums of the latents' channels.

    The map is fitted by least squares: smooth images of random colours are encoded, and each position of their latents
    is to give the mean colour of the pixels that it stands for. It shows composition and colours, not details.

    Args:
        factors: [C+1,3] float32: weights per channel, then the colour of zeros. Colours are in [0, 1].
        downscale: pixels per latent.
    """

    def __init__(self, factors: np.ndarray, downscale: int) -> None:
        self.factors = factors
        self._downscale = downscale

    @classmethod
    def fit(cls, components: Components, size: tuple[int, int]) -> Preview:
        """Fit the map to an engine, which takes as long as encoding a small image.

        Args:
            components: the opened engine.
            size: of the images to come, (height, width) in pixels, the only one that plans may take.

        Raises:
            EngineError: there is no VAE.
        """
        vae = components.manifest.vae
        if vae is None:
            raise rules.NO_VAE_TO_ENCODE.error()
        planned = components.backend.name in components.manifest.plans
        height, width = size if planned else (_SIDE * vae.downscale,) * 2
        pixels = _smooth_images(1 if planned else _IMAGES, height, width)
        latents, _ = components.encode_image(pixels)
        n, channels, rows, columns = latents.shape
        colours = pixels.reshape(n, rows, vae.downscale, columns, vae.downscale, 3).mean((2, 4)).reshape(-1, 3)
        known = latents.transpose(0, 2, 3, 1).reshape(-1, channels)
        known = np.concatenate([known, np.ones((len(known), 1), np.float32)], 1)
        factors, *_ = np.linalg.lstsq(known.astype(np.float64), colours.astype(np.float64), rcond=None)
        return cls(factors.astype(np.float32), vae.downscale)

    def colours(self, latents: np.ndarray) -> np.ndarray:
        """Latents [n,C,h,w], as `StepInfo` has them -> [n,h,w,3] float32 in [0, 1].

        Latents that are larger than unit variance, as some schedulers have them at first, are divided by their size.
        """
        size = np.sqrt(np.square(latents, dtype=np.float64).mean((1, 2, 3), keepdims=True))
        scaled = (latents / np.maximum(size, 1)).astype(np.float32).transpose(0, 2, 3, 1)
        return np.clip(scaled @ self.factors[:-1] + self.factors[-1], 0, 1)

    def __call__(self, latents: np.ndarray) -> list[Image.Image]:
        """Latents [n,C,h,w] -> n images of the size that they will be decoded to."""
        _, _, height, width = latents.shape
        size = width * self._downscale, height * self._downscale
        return [image.resize(size, Image.Resampling.BICUBIC) for image in to_pil(self.colours(latents))]


def _smooth_images(count: int, height: int, width: int) -> np.ndarray:
    """[n,H,W,3] float32 in [0, 1]: random colours on grids of a few sizes, with soft transitions."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        side = _COARSEST + index % (_FINEST - _COARSEST + 1) if count > 1 else _FINEST
        grid = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        made.append(np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)))
    return np.stack(made).astype(np.float32) / np.float32(255)
