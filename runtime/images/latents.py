"""From images and masks to what a run starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebca.runtime.components import Components
from ebca.runtime.images.inputs import latent_mask, load_images, load_masks, warn_if_resized
from ebca.runtime.noise import NormalStream, draw
from ebca.runtime.schema import parameters as rules
from ebca.runtime.validation import each_image

# What inpainting models saw in place of the hole when they were trained.
_GREY = np.float32(0.5)


@dataclass(frozen=True)
class ImageSource:
    """Images and masks at the session's size.

    pixels [n,H,W,3] in [0, 1]; mask [n or 1,1,H,W] and hole [n or 1,1,h,w] of 0 and 1, or None.
    """

    pixels: np.ndarray
    mask: np.ndarray | None = None
    hole: np.ndarray | None = None

    @classmethod
    def load(cls, image: Any, mask: Any, *, batch: int, size: tuple[int, int], downscale: int) -> "ImageSource | None":
        """Read and resize images and masks to (height, width); None without an image.

        Raises:
            ParameterError: they cannot be read, or are neither one nor one for each image of the batch.
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
    """What a run starts from.

    noise: [n,C,h,w] of unit variance; clean: latents of the images [n,C,h,w], or None without images; extra_channels:
    what follows the latents into an inpainting UNet [n,1+C,h,w], or None for other models.
    """

    noise: np.ndarray
    clean: np.ndarray | None = None
    extra_channels: np.ndarray | None = None


class LatentPreparation:
    """Draws noise and encodes images, in the order in which diffusers' pipelines draw.

    Args:
        streams: random numbers, one for all images or one each.
        shape: of the latents [n,C,h,w].
        given: initial latents that the caller passed in; None: they are drawn.
    """

    def __init__(
        self,
        components: Components,
        streams: Sequence[NormalStream],
        shape: tuple[int, ...],
        given: np.ndarray | None = None,
    ) -> None:
        self._components = components
        self._streams = streams
        self._shape = shape
        self._given = given

    def without_image(self) -> InitialLatents:
        """For text to image."""
        return InitialLatents(self._noise())

    def of_image(self, source: ImageSource) -> InitialLatents:
        """For image to image."""
        clean = self._encode(source.pixels)
        return InitialLatents(self._noise(), clean)

    def of_masked_image(self, source: ImageSource) -> InitialLatents:
        """For a model that was trained for inpainting: mask and masked image are extra channels of its UNet."""
        assert source.mask is not None and source.hole is not None
        noise = self._noise()
        clean = self._encode(_filled(source.pixels, source.mask, _GREY))
        holes = np.broadcast_to(source.hole, (len(clean), *source.hole.shape[1:]))
        return InitialLatents(noise, extra_channels=np.concatenate([holes, clean], 1))

    def of_kept_image(self, source: ImageSource) -> InitialLatents:
        """For RePaint: the image without its hole."""
        assert source.mask is not None
        noise = self._noise()
        # Grey would tint what is kept: a VAE normalises over the whole image.
        fill = _mean_colour(source.pixels, source.mask)
        return InitialLatents(noise, self._encode(_filled(source.pixels, source.mask, fill)))

    def _noise(self) -> np.ndarray:
        return draw(self._streams, self._shape) if self._given is None else self._given

    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        """A sample of the VAE's latents [n,C,h,w], as diffusers takes one."""
        mean, std = self._components.encode_image(pixels)
        return (mean + std * draw(self._streams, mean.shape)).astype(np.float32)


def _filled(pixels: np.ndarray, mask: np.ndarray, fill: np.ndarray | np.float32) -> np.ndarray:
    """The images [n,H,W,3] with `fill` where the mask [n or 1,1,H,W] is set."""
    return np.where(mask.transpose(0, 2, 3, 1) > 0, fill, pixels)


def _mean_colour(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[n,1,1,3]: mean colour of the pixels [n,H,W,3] outside the mask [n or 1,1,H,W]; grey if there are none."""
    kept = np.broadcast_to(1 - mask.transpose(0, 2, 3, 1), (*pixels.shape[:3], 1))
    count = kept.sum((1, 2), keepdims=True)
    mean = (pixels * kept).sum((1, 2), keepdims=True) / np.maximum(count, 1)
    return np.where(count > 0, mean, _GREY).astype(np.float32)
