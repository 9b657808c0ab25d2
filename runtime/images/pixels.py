"""From images in every accepted form to 8-bit pixels: modes, orientation, transparency, and the hole of a mask."""

import math
import stat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ebca.errors import ParameterError
from ebca.runtime.images.files import expanded
from ebca.runtime.images.outputs import to_bytes
from ebca.runtime.schema import parameters as rules
from ebca.runtime.validation import warn

CHANNELS = (1, 3, 4)
"""How many channels an array of pixels may have: grey, RGB, RGB and alpha."""

_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
# Pillow opens 16-bit files of these formats in its mode of 32-bit integers.
_SIXTEEN_BITS = ("PNG", "PPM")
_LONGEST_NAME = 200


def opened(name: str, value: Any) -> Image.Image:
    """An image in mode RGB, or RGBA if it can be transparent, turned as its EXIF orientation says.

    16-bit pixels are scaled by 65535, floats are taken as [0, 1].

    Args:
        name: for messages.
        value: a PIL image, a file, or an array [H,W], [H,W,1], [H,W,3] or [H,W,4].

    Raises:
        ParameterError: not an image, one that cannot be read, or pixels whose range is unknown.
    """
    if isinstance(value, np.ndarray):
        if value.ndim >= 2:
            _check_pixels(name, value.shape[0], value.shape[1])
        if not value.size or value.ndim not in (2, 3) or (value.ndim == 3 and value.shape[-1] not in CHANNELS):
            raise wrong_shape(name, value)
        pixels = to_bytes(unit(name, value))
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
        return image if image.mode == "RGBA" else image.convert("RGB")
    if not isinstance(value, Image.Image | str | Path):
        raise not_an_image(name, value)
    shown = name if isinstance(value, Image.Image) else f"{name} {rules.shortened(repr(str(value)), _LONGEST_NAME)}"
    try:
        if isinstance(value, Image.Image):
            return _in_rgb(shown, value)
        path = expanded(value)
        # Opening a pipe would wait for somebody who writes into it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ParameterError(f"{shown} cannot be read as an image: it is not a file", "give a PNG or JPEG file")
        with Image.open(path) as image:
            return _in_rgb(shown, image)
    except ParameterError:
        raise
    except FileNotFoundError:
        raise ParameterError(f"{shown} does not exist", "check the path") from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(shown) from None
    except (OSError, SyntaxError, ValueError) as error:
        # The system's own text names the file once more.
        reason = rules.shortened(getattr(error, "strerror", None) or str(error), _LONGEST_NAME)
        raise ParameterError(f"{shown} cannot be read as an image: {reason}", "give a PNG or JPEG file") from None


def on_white(name: str, image: Image.Image) -> Image.Image:
    """An image as RGB, with a warning if white shows through: what lies under transparency is arbitrary."""
    if image.mode != "RGBA":
        return image
    pixels = np.asarray(image).astype(np.uint16)
    rgb, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min() < 255:
        warn(rules.IMAGE_TRANSPARENT.text(name=name))
    return Image.fromarray(((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8))


def hole(name: str, image: Image.Image) -> Image.Image:
    """A mask as RGB, white in the hole.

    The hole of a mask with one colour is where it is transparent, as image editors and image APIs make it. Pixels of 0
    and 1 are scaled: as 8-bit pixels they would all be almost black, and the mask would be empty.
    """
    pixels = np.asarray(image)
    rgb = pixels[..., :3]
    alpha = pixels[..., 3:]
    if alpha.size and (alpha != alpha[0, 0]).any():
        if (rgb != rgb[0, 0]).any():
            warn(rules.MASK_COLOURS_AND_TRANSPARENCY.text(name=name))
        else:
            rgb = np.repeat(255 - alpha, 3, -1)
    return Image.fromarray(rgb * 255 if rgb.max() == 1 else rgb)


def unit(name: str, value: np.ndarray) -> np.ndarray:
    """Pixels as float32 in [0, 1]. Raises ParameterError for other types and values."""
    if value.dtype == np.uint8:
        return value.astype(np.float32) / 255
    if value.dtype.kind not in "fb":
        raise ParameterError(f"{name} is an array of {value.dtype}", "give uint8, or float in [0, 1]")
    return _in_range(f"{name} is a float array", value.astype(np.float32))


def wrong_shape(name: str, value: np.ndarray) -> ParameterError:
    axes = "[height, width]" if name == "mask" else "[height, width, 3]"
    return ParameterError(f"{name} is an array of shape {list(value.shape)}", f"give pixels {axes}")


def not_an_image(name: str, value: Any) -> ParameterError:
    return ParameterError(f"{name} is of type {type(value).__name__}", "give an image, its file, or an array of pixels")


def _most_pixels() -> float:
    """The limit of an image that is given in any form: Pillow's own for files, which a host may change."""
    limit = Image.MAX_IMAGE_PIXELS
    return math.inf if limit is None else 2 * limit


def _check_pixels(shown: str, height: int, width: int) -> None:
    """Raise ParameterError for an image that is far larger than any that is made from it."""
    if height * width > _most_pixels():
        raise _too_many_pixels(shown)


def _too_many_pixels(shown: str) -> ParameterError:
    return ParameterError(f"{shown} has more than {_most_pixels()} pixels", "make it smaller before")


def _in_rgb(shown: str, image: Image.Image) -> Image.Image:
    _check_pixels(shown, image.height, image.width)
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS)
    mode, key = image.mode, image.info.get("transparency")
    if mode == "I" and not sixteen:
        raise ParameterError(
            f"{shown} has the mode I (32-bit integers), which says nothing about the range of its pixels",
            "convert it to 8 bits (mode L or RGB) or to 16 (mode I;16)",
        )
    if not image.width or not image.height:
        raise ParameterError(f"{shown} has {image.width} x {image.height} pixels", "give an image with some")
    image = ImageOps.exif_transpose(image)
    # PIL would clip the pixels of these modes at 255 instead of scaling them.
    if sixteen:
        values = np.asarray(image, np.float32)
        grey = Image.fromarray(np.rint(values / 257).astype(np.uint8))
        if key is None:
            return grey.convert("RGB")
        return Image.merge("RGBA", (grey, grey, grey, Image.fromarray((values != key).astype(np.uint8) * 255)))
    if mode == "F":
        values = _in_range(f"{shown} has the mode F (float)", np.asarray(image, np.float32))
        return Image.fromarray(to_bytes(values)).convert("RGB")
    if mode == "La":
        image = image.convert("LA")
    return image.convert("RGBA" if mode in _WITH_ALPHA or key is not None else "RGB")


def _in_range(what: str, pixels: np.ndarray) -> np.ndarray:
    if not np.isfinite(pixels).all() or pixels.min(initial=0) < 0 or pixels.max(initial=0) > 1:
        raise ParameterError(f"{what} with values outside [0, 1]", "scale it to [0, 1], for example by dividing by 255")
    return pixels
