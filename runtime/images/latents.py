"""From images and masks to the inputs of sampling: initial latents, clean latents, extra UNet channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebca.runtime.components import Components
from ebca.runtime.images.inputs import latent_mask, load_images, load_masks, warn_if_resized
from ebca.runtime.noise import NormalStream, draw
from ebca.runtime.schema import parameters as rules
from ebca.runtime.validation import each_image

# Inpainting models were trained with this in place of the hole.
_GREY = np.float32(0.5)


@dataclass(frozen=True)
class ImageSource:
    """Images and masks at the session's size.

    Attributes:
        pixels: [n,H,W,3] float32 in [0, 1].
        mask: [n or 1,1,H,W] float32, 1 where the image is regenerated, else 0; or None.
        hole: [n or 1,1,h,w], the mask at latent size; or None.
    """

    pixels: np.ndarray
    mask: np.ndarray | None = None
    hole: np.ndarray | None = None

    @classmethod
    def load(cls, image: Any, mask: Any, *, batch: int, size: tuple[int, int], downscale: int) -> "ImageSource | None":
        """Read images and masks, and resize them. Returns None without an image.

        Args:
            image, mask: one or several of each, in any form of `ImageLike`; or None.
            batch: number of images per call.
            size: (height, width) in pixels.
            downscale: pixels per latent.

        Raises:
            ParameterError: one cannot be read, or their number is neither 1 nor `batch`.
        """
        if image is None:
            return None
        pixels = each_image("images", load_images(image, *size), batch)
        if mask is None:
            return cls(pixels)
        masks = load_masks(mask, *size)
        warn_if_resized(image, mask)
        if len(masks) > 1:
            masks = each_image("masks", masks, batch)
        hole = latent_mask(masks, downscale)
        if not hole.any((1, 2, 3)).all():
            raise rules.MASK_TOO_SMALL.error(downscale=downscale)
        return cls(pixels, masks, hole)


@dataclass(frozen=True)
class InitialLatents:
    """Inputs of sampling.

    Attributes:
        noise: [n,C,h,w] float32 of unit variance.
        clean: [n,C,h,w] float32, clean latents of the images; None without images.
        extra_channels: float32, extra UNet channels: [n,1+C,h,w] of an inpainting model, [parts,n,C,h,w] of
            InstructPix2Pix; None for other models.
    """

    noise: np.ndarray
    clean: np.ndarray | None = None
    extra_channels: np.ndarray | None = None


class LatentPreparation:
    """Draws noise and encodes images. Random numbers are drawn in the same order as in diffusers' pipelines.

    Args:
        components: the VAE.
        streams: sources of noise, one for all images or one per image.
        shape: of the latents [n,C,h,w].
        given: initial latents from the caller; None: draw them.
        tiled: encode images in tiles, see `Components.encode_image`.
    """

    def __init__(
        self,
        components: Components,
        streams: Sequence[NormalStream],
        shape: tuple[int, ...],
        given: np.ndarray | None = None,
        *,
        tiled: bool = False,
    ) -> None:
        self._components = components
        self._streams = streams
        self._shape = shape
        self._given = given
        self._tiled = tiled

    def without_image(self) -> InitialLatents:
        """For text to image."""
        return InitialLatents(self._noise())

    def of_image(self, source: ImageSource) -> InitialLatents:
        """For image to image."""
        clean = self._encode(source.pixels)
        return InitialLatents(self._noise(), clean)

    def of_masked_image(self, source: ImageSource, *, whole: bool) -> InitialLatents:
        """For inpainting with a model trained for it: mask and masked image are extra UNet channels.

        Args:
            source: image and mask.
            whole: encode the image without a hole too, as a start with some of the steps done.
        """
        assert source.mask is not None and source.hole is not None
        clean = self._encode(source.pixels) if whole else None
        noise = self._noise()
        masked = self._encode(_filled(source.pixels, source.mask, _GREY))
        holes = np.broadcast_to(source.hole, (len(masked), *source.hole.shape[1:]))
        return InitialLatents(noise, clean, np.concatenate([holes, masked], 1))

    def of_changed_image(self, source: ImageSource, parts: int) -> InitialLatents:
        """For InstructPix2Pix: the most likely latents of the image, not scaled, are extra UNet channels.

        Args:
            source: the image.
            parts: rows per image: 1, or 3, the first of which does not see the image.
        """
        latents, _ = self._components.encode_image(source.pixels, scaled=False, tiled=self._tiled)
        unseen = [np.zeros_like(latents)] if parts > 1 else []
        return InitialLatents(self._noise(), extra_channels=np.stack([*unseen, *[latents] * (parts - len(unseen))]))

    def of_kept_image(self, source: ImageSource) -> InitialLatents:
        """For RePaint: the image with its hole filled."""
        assert source.mask is not None
        noise = self._noise()
        # Grey would tint the rest of the image, because the VAE normalises over all pixels.
        fill = _mean_colour(source.pixels, source.mask)
        return InitialLatents(noise, self._encode(_filled(source.pixels, source.mask, fill)))

    def _noise(self) -> np.ndarray:
        return draw(self._streams, self._shape) if self._given is None else self._given

    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        """Sample latents [n,C,h,w] from the VAE's distribution, as diffusers does."""
        mean, std = self._components.encode_image(pixels, tiled=self._tiled)
        return (mean + std * draw(self._streams, mean.shape)).astype(np.float32)


def _filled(pixels: np.ndarray, mask: np.ndarray, fill: np.ndarray | np.float32) -> np.ndarray:
    """Images [n,H,W,3] with `fill` where the mask [n or 1,1,H,W] is 1."""
    return np.where(mask.transpose(0, 2, 3, 1) > 0, fill, pixels)


def _mean_colour(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[n,1,1,3]: mean colour of the pixels [n,H,W,3] outside the mask [n or 1,1,H,W]; grey if there are none."""
    kept = np.broadcast_to(1 - mask.transpose(0, 2, 3, 1), (*pixels.shape[:3], 1))
    count = kept.sum((1, 2), keepdims=True)
    mean = (pixels * kept).sum((1, 2), keepdims=True) / np.maximum(count, 1)
    return np.where(count > 0, mean, _GREY).astype(np.float32)
