"""Images in tiles, for a VAE that would need too much memory for a whole one.

Tiles overlap by a quarter, and their edges are blended linearly, as `enable_tiling` of diffusers does. Each tile is
decoded without a view of the others, so colours may differ slightly from tile to tile.
"""

from collections.abc import Callable

import numpy as np

# A tile overlaps the one before by 1 / _PARTS of its side.
_PARTS = 4

Run = Callable[[np.ndarray], np.ndarray]
"""Maps a tile [1,C,h,w] to its result [1,K,H,W]."""


def tile_side(sample_size: int) -> int:
    """Height and width of a tile in latents: those that the model was trained at, as whole quarters."""
    return max(sample_size // _PARTS, 1) * _PARTS


def is_tiled(height: int, width: int, side: int) -> bool:
    """Whether an image of this size has more than one tile."""
    return height > side or width > side


def in_tiles(array: np.ndarray, run: Run, side: int, made: int) -> np.ndarray:
    """The result of a whole array, from those of its tiles.

    Args:
        array: [1,C,h,w] float32.
        run: makes the result of a tile, whose sides are up to `side`.
        side: of a tile in `array`, a multiple of 4.
        made: side of such a tile's result, likewise.

    Returns:
        [1,K,h made/side, w made/side] float32.
    """
    stride, blend = side - side // _PARTS, made // _PARTS
    kept = made - blend
    rows: list[np.ndarray] = []
    above: list[np.ndarray] = []
    for top in range(0, array.shape[2], stride):
        tiles: list[np.ndarray] = []
        for column, left in enumerate(range(0, array.shape[3], stride)):
            tile = np.array(run(np.ascontiguousarray(array[:, :, top : top + side, left : left + side])))
            if above:
                _blend(above[column], tile, blend)
            if tiles:
                _blend(tiles[-1].swapaxes(2, 3), tile.swapaxes(2, 3), blend)
            tiles.append(tile)
        rows.append(np.concatenate([tile[:, :, :kept, :kept] for tile in tiles], 3))
        above = tiles
    return np.concatenate(rows, 2)


def _blend(before: np.ndarray, tile: np.ndarray, rows: int) -> None:
    """Blend the first rows of a tile [1,K,H,W], in place, with the last ones of the tile before it."""
    count = min(before.shape[2], tile.shape[2], rows)
    weights = (np.arange(count, dtype=np.float32) / np.float32(count))[:, None]
    tile[:, :, :count] = before[:, :, -count:] * (np.float32(1) - weights) + tile[:, :, :count] * weights
