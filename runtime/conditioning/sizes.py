"""Sizes that the UNet of Stable Diffusion XL is told beside the prompt, as it was in its training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebca.runtime.schema import parameters as rules
from ebca.runtime.shown import Shown
from ebca.runtime.validation import whole

SizePair = Sequence[int]
"""Two whole numbers, vertical first."""

_NEGATIVE = "negative_"
_MEANINGS = {
    "original_size": "height and width",
    "crops_coords_top_left": "pixels from the top and from the left",
    "target_size": "height and width",
}


@dataclass(frozen=True, repr=False)
class SizeConditions(Shown):
    """What Stable Diffusion XL is told about the sizes of an image. They change how the image looks, not its size.

    Attributes:
        original_size: (height, width) of the image before it was scaled; small ones look blurred. None: the size of the
            image that is generated.
        crops_coords_top_left: (top, left) pixels that were cut off; others than (0, 0), the default, look cropped.
        target_size: (height, width) of the image. None: the size of the image that is generated.
        negative_original_size, negative_target_size: the same for the unconditional half of classifier-free guidance,
            both or none. None: those of the other half, and its crop.
        negative_crops_coords_top_left: beside these two; (0, 0) is the default.
    """

    original_size: SizePair | None = None
    crops_coords_top_left: SizePair | None = None
    target_size: SizePair | None = None
    negative_original_size: SizePair | None = None
    negative_crops_coords_top_left: SizePair | None = None
    negative_target_size: SizePair | None = None

    def rows(self, size: tuple[int, int]) -> tuple[list[int], list[int]]:
        """What the unconditional half is told, and what the conditional half is: six numbers each.

        Args:
            size: (height, width) in pixels of the image that is generated.
        """
        conditional = _row(self.original_size, self.crops_coords_top_left, self.target_size, size)
        if self.negative_original_size is None:
            return conditional, conditional
        crop = self.negative_crops_coords_top_left
        return _row(self.negative_original_size, crop, self.negative_target_size, size), conditional

    def time_ids(self, size: tuple[int, int], images: int, unconditional_parts: int) -> np.ndarray:
        """[B,6] float32, unconditional rows first.

        Args:
            size: as for `rows`.
            images: n, the conditional rows.
            unconditional_parts: rows before them, for each image.
        """
        unconditional, conditional = self.rows(size)
        rows = [unconditional] * (images * unconditional_parts) + [conditional] * images
        return np.array(rows, np.float32)


def _row(original: SizePair | None, crop: SizePair | None, target: SizePair | None, size: tuple[int, int]) -> list[int]:
    pairs = (original, size), (crop, (0, 0)), (target, size)
    return [int(one) for given, default in pairs for one in (default if given is None else given)]


def check(sizes: SizeConditions) -> None:
    """Raise ParameterError for a value that is no pair of whole numbers, or a lone size of the negative prompt."""
    for name, value in given(sizes):
        _check_pair(name, value)
    names = [name for name, _ in given(sizes) if name.startswith(_NEGATIVE)]
    for other in ("negative_original_size", "negative_target_size"):
        if names and other not in names:
            raise rules.NEGATIVE_SIZES.error(name=names[0], other=other)


def given(sizes: SizeConditions) -> Iterator[tuple[str, Any]]:
    """Names and values of the fields that are not None."""
    return ((name, value) for name, value in vars(sizes).items() if value is not None)


def _check_pair(name: str, value: Any) -> None:
    pair = list(value) if isinstance(value, list | tuple | np.ndarray) and np.ndim(value) == 1 else []
    limit = rules.MAX_SIZE_CONDITION
    if len(pair) != 2 or not all(0 <= whole(name, one) <= limit for one in pair):
        meaning = _MEANINGS[name.removeprefix(_NEGATIVE)]
        raise rules.SIZE_CONDITION.error(
            name=name, value=rules.shortened(repr(value), 60), limit=limit, meaning=meaning
        )
