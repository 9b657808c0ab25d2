"""Images of latents during sampling: by a small decoder if the engine has one, else by one linear map per engine."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from PIL import Image

from ebca.runtime.components import Components
from ebca.runtime.execution.control import resize_mask
from ebca.runtime.images.outputs import to_pil, to_unit_range
from ebca.runtime.noise import NormalStream
from ebca.runtime.schema import parameters as rules

# What the map is fitted to: enough positions for a few numbers, little enough to decode in a moment.
_IMAGES, _SIDE = 5, 12
_COARSEST = 2
# Of the squares of latents: keeps channels that decide nothing from getting large weights.
_RIDGE = 0.01


class Preview(Protocol):
    """Shows `StepInfo.unit_latents` [n,C,h,w] as n images of the size that they will be decoded to."""

    def __call__(self, latents: np.ndarray) -> list[Image.Image]: ...


def preview_of(components: Components, size: tuple[int, int]) -> Preview:
    """How an engine shows latents.

    Args:
        components: the opened engine.
        size: of the images to come, (height, width) in pixels, the only one that plans may take.

    Raises:
        EngineError: there is no VAE.
    """
    vae = components.manifest.vae
    if vae is not None and vae.preview is not None:
        return DecodedPreview(components)
    return LinearPreview.fit(components, size)


class DecodedPreview:
    """Shows latents by the engine's small decoder, with details."""

    def __init__(self, components: Components) -> None:
        self._components = components

    def __call__(self, latents: np.ndarray) -> list[Image.Image]:
        """See `Preview`."""
        return to_pil(to_unit_range(self._components.decode_preview(latents)))


class LinearPreview:
    """Shows latents as images without the VAE: red, green and blue are weighted sums of the latents' channels.

    The map is fitted by least squares: smooth random latents are decoded, and each position is to give the mean colour
    of the pixels that it stands for. It shows composition and colours, not details.

    Args:
        factors: [C+1,3] float32: weights per channel, then the colour of zeros. Colours are in [0, 1].
        downscale: pixels per latent.
    """

    def __init__(self, factors: np.ndarray, downscale: int) -> None:
        self.factors = factors
        self._downscale = downscale

    @classmethod
    def fit(cls, components: Components, size: tuple[int, int]) -> LinearPreview:
        """Fit the map to an engine, which takes as long as decoding a few small images. See `preview_of`."""
        vae = components.manifest.vae
        if vae is None:
            raise rules.NO_VAE_TO_DECODE.error()
        planned = components.backend.name in components.manifest.plans
        height, width = (side // vae.downscale for side in size) if planned else (_SIDE, _SIDE)
        latents = _smooth_latents((1 if planned else _IMAGES, vae.latent_channels, height, width))
        pixels = to_unit_range(components.decode(latents))
        return cls(_least_squares(latents, pixels, vae.downscale), vae.downscale)

    def colours(self, latents: np.ndarray) -> np.ndarray:
        """`StepInfo.unit_latents` [n,C,h,w] -> [n,h,w,3] float32 in [0, 1]."""
        # In float64, whose rounding to float32 does not depend on the order of the sums: the C++ library has the same.
        weights, zero = self.factors[:-1].astype(np.float64), self.factors[-1]
        return np.clip((latents.transpose(0, 2, 3, 1) @ weights + zero).astype(np.float32), 0, 1)

    def __call__(self, latents: np.ndarray) -> list[Image.Image]:
        """See `Preview`."""
        _, _, height, width = latents.shape
        size = width * self._downscale, height * self._downscale
        return [image.resize(size, Image.Resampling.BICUBIC) for image in to_pil(self.colours(latents))]


def _smooth_latents(shape: tuple[int, int, int, int]) -> np.ndarray:
    """[n,C,h,w] float32 of about unit variance: random values on grids of a few sizes, with soft transitions."""
    stream = NormalStream(0)
    count, channels, height, width = shape
    sides = [_COARSEST + (index if count > 1 else _IMAGES) for index in range(count)]
    return np.stack([resize_mask(stream.randn((channels, 1, side, side)), height, width) for side in sides])


def _least_squares(latents: np.ndarray, pixels: np.ndarray, downscale: int) -> np.ndarray:
    """[C+1,3] float32 factors from latents [n,C,h,w] and their images [n,H,W,3]."""
    n, channels, rows, columns = latents.shape
    colours = pixels.reshape(n, rows, downscale, columns, downscale, 3).mean((2, 4), np.float64)
    colours = colours.astype(np.float32).reshape(-1, 3).astype(np.float64)
    known = latents.transpose(0, 2, 3, 1).reshape(-1, channels).astype(np.float64)
    middle, colour = known.mean(0), colours.mean(0)
    known -= middle
    ridge = _RIDGE * len(known) * np.eye(channels)
    weights = np.linalg.solve(known.T @ known + ridge, known.T @ (colours - colour))
    return np.concatenate([weights, (colour - middle @ weights)[None]]).astype(np.float32)
