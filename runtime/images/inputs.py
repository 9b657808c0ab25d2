"""Reads images and masks, and resizes them to the size of a session."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ebca.errors import ParameterError
from ebca.runtime.images.pixels import CHANNELS, hole, not_an_image, on_white, opened, unit, wrong_shape
from ebca.runtime.schema import parameters as rules
from ebca.runtime.validation import warn

ImageLike = Image.Image | str | Path | np.ndarray
"""A PIL image, a file, or an array [H,W,3] (for a mask [H,W]), uint8 or float in [0, 1]. A mask may also be an array of
bool, or of uint8 with only 0 and 1."""


def load_images(value: ImageLike | Sequence[ImageLike], height: int, width: int) -> np.ndarray:
    """One or several images -> [n,height,width,3] float32 in [0, 1]. Other sizes are resized (bicubic).

    An EXIF orientation is applied. Transparent pixels are composited on white, with a warning.

    Raises:
        ParameterError: not an image, or a file that cannot be read as an image.
    """
    return np.stack([_image(one, height, width) for one in _each("image", value)])


def load_masks(value: ImageLike | Sequence[ImageLike], height: int, width: int) -> np.ndarray:
    """One or several masks -> [n,1,height,width] float32, 1 in the hole (white: 1/2 and brighter), else 0.

    If a mask has only one colour and its alpha varies, the hole is where it is transparent (alpha below 1/2). If its
    8-bit pixels are all 0 or 1, the hole is 1: no pixel of an 8-bit mask would be white.

    Raises:
        ParameterError: as in `load_images`, and a mask without a hole.
    """
    masks = np.stack([load_mask("mask", one, height, width) for one in _each("mask", value)])[:, None]
    empty = np.flatnonzero(~masks.any((1, 2, 3)))
    if empty.size:
        which = f"mask {empty[0]}" if len(masks) > 1 else "the mask"
        raise rules.MASK_EMPTY.error(which=which)
    return masks


def load_mask(name: str, value: ImageLike, height: int, width: int) -> np.ndarray:
    """One mask -> [height,width] float32, as in `load_masks`, possibly without a hole.

    Args:
        name: for messages.
        value: the mask.
        height, width: size to resize to.

    Raises:
        ParameterError: not an image, or a file that cannot be read as an image.
    """
    if (
        isinstance(value, np.ndarray)
        and value.dtype != np.uint8
        and value.shape in ((height, width), (height, width, 1))
    ):
        return (unit(name, value.reshape(height, width)) >= 0.5).astype(np.float32)
    mask = hole(f"the {name}", opened(name, value))
    grey = mask.resize((width, height), Image.Resampling.BICUBIC).convert("L")
    return (np.asarray(grey, np.float32) >= 127.5).astype(np.float32)


def image_size(value: ImageLike | Sequence[ImageLike], name: str = "image") -> tuple[int, int]:
    """(height, width) in pixels of the first image.

    Args:
        value: one or several images.
        name: for messages.

    Raises:
        ParameterError: not an image, or a file that cannot be read as an image.
    """
    first = _each(name, value)[0]
    if isinstance(first, np.ndarray):
        return int(first.shape[0]), int(first.shape[1])
    image = opened(name, first)
    return image.height, image.width


def image_count(name: str, value: ImageLike | Sequence[ImageLike]) -> int:
    """The number of images. Raises ParameterError for what cannot be images; `name` is for messages."""
    return len(_each(name, value))


def warn_if_resized(image: ImageLike | Sequence[ImageLike], mask: ImageLike | Sequence[ImageLike]) -> None:
    """Warn if the first image and the first mask differ in size."""
    of_image, of_mask = image_size(image), image_size(mask, "mask")
    if of_image != of_mask:
        sizes = {"mask_width": of_mask[1], "mask_height": of_mask[0], "image_width": of_image[1]}
        warn(rules.MASK_STRETCHED.text(**sizes, image_height=of_image[0]))


def fitted_size(size: tuple[int, int], native: int, multiple: int) -> tuple[int, int]:
    """(height, width) with about native x native pixels and the aspect ratio of `size`, in multiples of `multiple`."""
    height, width = size
    scale = native / (height * width) ** 0.5
    fitted = [max(round(side * scale / multiple), 1) * multiple for side in (height, width)]
    return fitted[0], fitted[1]


def latent_mask(masks: np.ndarray, downscale: int) -> np.ndarray:
    """[n,1,H,W] -> [n,1,h,w] by the top left pixel of each block, as in the authors' code."""
    return np.ascontiguousarray(masks[:, :, ::downscale, ::downscale])


def _each(name: str, value: Any) -> list[Any]:
    """A list of single images or masks."""
    if isinstance(value, (Image.Image, str, Path)):
        return [value]
    if isinstance(value, np.ndarray):
        if value.ndim == 2 or (value.ndim == 3 and value.shape[-1] in CHANNELS):
            return [value]
        # For images, [n,H,W] is refused: it could also be one image with its channels first.
        if value.ndim == 4 or (value.ndim == 3 and name == "mask"):
            return list(value) or [value]
        raise wrong_shape(name, value)
    # Bytes and open files can be iterated, too, but not over images.
    if not isinstance(value, Iterable) or isinstance(value, bytes | bytearray | memoryview) or hasattr(value, "read"):
        raise not_an_image(name, value)
    items = list(value)
    if not items:
        raise ParameterError(f"{name} is an empty list", "give at least one image")
    return items


def _image(value: Any, height: int, width: int) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.shape == (height, width, 3):
        return unit("image", value)
    image = on_white("the image", opened("image", value))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
