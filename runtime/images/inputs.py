"""Reads images and masks, and resizes them to the size of a session."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ebca.errors import ParameterError
from ebca.runtime.images.outputs import to_bytes
from ebca.runtime.schema import parameters as rules

ImageLike = Image.Image | str | Path | np.ndarray
"""A PIL image, a file, or an array [H,W,3] (for a mask [H,W]), uint8 or float in [0, 1]."""

_CHANNELS = (1, 3, 4)


def load_images(value: ImageLike | Sequence[ImageLike], height: int, width: int) -> np.ndarray:
    """One or several images -> [n,height,width,3] float32 in [0, 1]. Other sizes are resized (bicubic).

    Raises:
        ParameterError: not an image, or a file that cannot be read as an image.
    """
    return np.stack([_image(one, height, width) for one in _each("image", value)])


def load_masks(value: ImageLike | Sequence[ImageLike], height: int, width: int) -> np.ndarray:
    """One or several masks -> [n,1,height,width] float32, 1 in the hole (white: 1/2 and brighter), else 0.

    Raises:
        ParameterError: as in `load_images`, and a mask without a hole.
    """
    masks = np.stack([_mask(one, height, width) for one in _each("mask", value)])[:, None]
    empty = np.flatnonzero(~masks.any((1, 2, 3)))
    if empty.size:
        which = f"mask {empty[0]}" if len(masks) > 1 else "the mask"
        raise rules.MASK_EMPTY.error(which=which)
    return masks


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
    image = _open(name, first)
    return image.height, image.width


def warn_if_resized(image: ImageLike | Sequence[ImageLike], mask: ImageLike | Sequence[ImageLike]) -> None:
    """Warn if the first image and the first mask differ in size."""
    of_image, of_mask = image_size(image), image_size(mask, "mask")
    if of_image != of_mask:
        sizes = {"mask_width": of_mask[1], "mask_height": of_mask[0], "image_width": of_image[1]}
        warnings.warn(rules.MASK_STRETCHED.text(**sizes, image_height=of_image[0]), stacklevel=6)


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
        if value.ndim == 2 or (value.ndim == 3 and value.shape[-1] in _CHANNELS):
            return [value]
        # For images, [n,H,W] is refused: it could also be one image with its channels first.
        if value.ndim == 4 or (value.ndim == 3 and name == "mask"):
            return list(value) or [value]
        raise _wrong_shape(name, value)
    # Bytes and open files can be iterated, too, but not over images.
    if not isinstance(value, Iterable) or isinstance(value, bytes | bytearray | memoryview) or hasattr(value, "read"):
        raise _not_an_image(name, value)
    items = list(value)
    if not items:
        raise ParameterError(f"{name} is an empty list", "give at least one image")
    return items


def _image(value: Any, height: int, width: int) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.shape == (height, width, 3):
        return _unit("image", value)
    resized = _open("image", value).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float32) / 255


def _mask(value: Any, height: int, width: int) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.shape in ((height, width), (height, width, 1)):
        return (_unit("mask", value.reshape(height, width)) >= 0.5).astype(np.float32)
    resized = _open("mask", value).resize((width, height), Image.Resampling.BICUBIC).convert("L")
    return (np.asarray(resized, np.float32) >= 127.5).astype(np.float32)


def _open(name: str, value: Any) -> Image.Image:
    if isinstance(value, np.ndarray):
        if not value.size or value.ndim not in (2, 3) or (value.ndim == 3 and value.shape[-1] not in _CHANNELS):
            raise _wrong_shape(name, value)
        pixels = to_bytes(_unit(name, value))
        return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).convert("RGB")
    if isinstance(value, Image.Image):
        return _rgb(value)
    if not isinstance(value, (str, Path)):
        raise _not_an_image(name, value)
    try:
        with Image.open(value) as image:
            return _rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise ParameterError(f"{name} '{value}' does not exist", "check the path") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"{name} '{value}' cannot be read as an image: {error}"
        raise ParameterError(problem, "give a PNG or JPEG file") from None


def _rgb(image: Image.Image) -> Image.Image:
    # PIL would clip 16-bit pixels at 255 instead of scaling them.
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image, np.float32) / 257).astype(np.uint8))
    return image.convert("RGB")


def _wrong_shape(name: str, value: np.ndarray) -> ParameterError:
    axes = "[height, width]" if name == "mask" else "[height, width, 3]"
    return ParameterError(f"{name} is an array of shape {list(value.shape)}", f"give pixels {axes}")


def _not_an_image(name: str, value: Any) -> ParameterError:
    return ParameterError(f"{name} is of type {type(value).__name__}", "give an image, its file, or an array of pixels")


def _unit(name: str, value: np.ndarray) -> np.ndarray:
    """Pixels as float32 in [0, 1]."""
    if value.dtype == np.uint8:
        return value.astype(np.float32) / 255
    if value.dtype.kind not in "fb":
        raise ParameterError(f"{name} is an array of {value.dtype}", "give uint8, or float in [0, 1]")
    pixels = value.astype(np.float32)
    if not np.isfinite(pixels).all() or pixels.min(initial=0) < 0 or pixels.max(initial=0) > 1:
        raise ParameterError(
            f"{name} is a float array with values outside [0, 1]", "scale it to [0, 1], for example by dividing by 255"
        )
    return pixels
