"""From arrays to images."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Of a sheet, in pixels and in images.
_TILE, _GAP, _COLUMNS = 256, 4, 4


def to_unit_range(decoded: np.ndarray) -> np.ndarray:
    """[n,3,H,W] in [-1, 1] -> [n,H,W,3] in [0, 1], float32."""
    return np.clip(decoded * 0.5 + 0.5, 0.0, 1.0).transpose(0, 2, 3, 1)


def to_bytes(images: np.ndarray) -> np.ndarray:
    """[...] in [0, 1] -> [...] uint8, rounded."""
    return np.rint(images * 255).astype(np.uint8)


def to_pil(images: np.ndarray) -> list[Image.Image]:
    """[n,H,W,3] in [0, 1] -> RGB images."""
    return [Image.fromarray(image) for image in to_bytes(images)]


def sheet(images: Sequence[Image.Image]) -> Image.Image:
    """All images in rows of at most four; several are at most 256 pixels wide and high."""
    if len(images) == 1:
        return images[0]
    tiles = [image.copy() for image in images]
    for tile in tiles:
        tile.thumbnail((_TILE, _TILE))
    width, height = (max(side) + _GAP for side in zip(*(tile.size for tile in tiles), strict=True))
    columns = min(len(tiles), _COLUMNS)
    rows = -(-len(tiles) // columns)
    made = Image.new("RGB", (columns * width - _GAP, rows * height - _GAP), "white")
    for index, tile in enumerate(tiles):
        made.paste(tile, (index % columns * width, index // columns * height))
    return made
