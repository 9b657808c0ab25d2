"""Regions of an image, given as masks or as boxes, on the grid of a coarse map."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image

from ebca.runtime.images.inputs import ImageLike, image_size, load_mask
from ebca.runtime.schema import parameters as rules
from ebca.runtime.validation import as_numbers

Box = tuple[float, float, float, float]
"""Left, top, right and bottom as shares of width and height, from 0 to 1."""

Region = ImageLike | Box
"""A mask, white where something belongs, or a box."""


def is_box(value: Any) -> bool:
    """Whether a region is a box rather than a mask: a sequence of numbers."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def is_file(value: Any) -> TypeGuard[str | Path]:
    """Whether a region is a mask in a file."""
    return isinstance(value, str | Path)


def check_box(subject: str, value: Any) -> Box:
    """The numbers of a box.

    Args:
        subject: for messages.
        value: four numbers.

    Raises:
        ParameterError: others than four numbers from 0 to 1, or a box without area.
    """
    array = as_numbers(f"the region of '{subject}'", value, "four numbers, or a mask")
    if array.shape == (4,):
        left, top, right, bottom = (float(one) for one in value)
        if 0 <= left < right <= 1 and 0 <= top < bottom <= 1:
            return left, top, right, bottom
    raise rules.REGION_BOX.error(subject=subject, value=str(value))


def coverage(subject: str, value: Region, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """The share of each cell of a grid that a region covers, [h,w] float32.

    Args:
        subject: what belongs there, for messages.
        value: the region.
        size: (height, width) of the image in pixels. A mask is read at this size, as other masks are.
        grid: (h, w) of the map.

    Raises:
        ParameterError: a box without area, or a mask that cannot be read, has another aspect ratio than the image, or
            no white pixel.
    """
    height, width = grid
    if is_box(value):
        left, top, right, bottom = check_box(subject, value)
        return np.outer(_covered(top, bottom, height), _covered(left, right, width)).astype(np.float32)
    mask = _mask(subject, value, size)
    small = Image.fromarray(mask).resize((width, height), Image.Resampling.BOX)
    return np.clip(np.asarray(small, np.float32), 0, 1)


def _mask(subject: str, value: Any, size: tuple[int, int]) -> np.ndarray:
    name = f"region of '{subject}'"
    height, width = image_size(value, name)
    # Rounding of either side by one pixel is no other aspect ratio.
    if abs(height * size[1] - width * size[0]) > max(size):
        raise rules.REGION_ASPECT.error(
            subject=subject, width=width, height=height, image_width=size[1], image_height=size[0]
        )
    mask = load_mask(name, value, *size)
    if not mask.any():
        raise rules.REGION_EMPTY.error(subject=subject)
    return mask


def _covered(begin: float, end: float, cells: int) -> np.ndarray:
    """The share of each of the cells between 0 and 1 that an interval covers."""
    edges = np.arange(cells + 1)
    return np.clip(np.minimum(edges[1:], end * cells) - np.maximum(edges[:-1], begin * cells), 0, 1)
