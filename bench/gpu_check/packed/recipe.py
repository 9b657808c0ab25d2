"""The recipe of weights files: where the rows of which random parameters lie in them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebca.export.checkpoint.random_weights import random_parameter


@dataclass(frozen=True)
class Cast:
    """How float32 parameters are stored.

    dtype: "float16" or "float32". rounded: float32 numbers that were rounded to float16.
    """

    dtype: str
    rounded: bool = False

    def __call__(self, parameter: np.ndarray) -> np.ndarray:
        return (parameter.astype(np.float16) if self.rounded else parameter).astype(self.dtype, copy=False)


CASTS = (Cast("float16"), Cast("float32", rounded=True), Cast("float32"))


@dataclass(frozen=True)
class Piece:
    """Rows of a parameter in a weights file.

    file, offset: a stored matrix: its file in the engine directory, and its first byte there.
    rows, columns, dtype, rounded: of the matrix; `Cast` says what the last two mean.
    transposed: the file holds the matrix column by column.
    row, count: the rows of the matrix that this piece fills.
    key, first: the parameter, see `rows_of`, and its first row.
    channels_last: the axis of input channels of the parameter was moved behind the others.
    """

    file: str
    offset: int
    rows: int
    columns: int
    dtype: str
    rounded: bool
    transposed: bool
    row: int
    count: int
    key: str
    first: int
    channels_last: bool

    def matrix(self, weights: np.ndarray) -> np.ndarray:
        """The stored matrix as a view [rows, columns] of its weights file, uint8."""
        dtype = np.dtype(self.dtype)
        stored = weights[self.offset : self.offset + self.rows * self.columns * dtype.itemsize].view(dtype)
        if self.transposed:
            return stored.reshape(self.columns, self.rows).T
        return stored.reshape(self.rows, self.columns)


def rows_of(parameter: np.ndarray, *, channels_last: bool = False) -> np.ndarray:
    """A parameter as a matrix with a row per output channel, [n, 1] for vectors."""
    if channels_last:
        parameter = np.moveaxis(parameter, 1, -1)
    return parameter.reshape(len(parameter), -1)


@dataclass(frozen=True)
class Recipe:
    """How to make the weights files of an engine directory.

    model: name of the built-in model; None if there are no random weights.
    sizes: bytes of each weights file.
    shapes: of the parameters that the pieces name.
    pieces: what comes from random parameters.
    verbatim: (file, offset, bytes) of everything else that is not zero, in the order in which it is stored.
    numpy: version that made the parameters.
    """

    model: str | None
    sizes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    pieces: Sequence[Piece]
    verbatim: Sequence[tuple[str, int, int]]
    numpy: str = np.__version__

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "pieces": [astuple(piece) for piece in self.pieces]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Recipe":
        """Raises KeyError, TypeError or ValueError for anything but the result of `to_json`."""
        return cls(
            model=data["model"],
            sizes={str(file): int(size) for file, size in data["sizes"].items()},
            shapes={str(key): tuple(map(int, shape)) for key, shape in data["shapes"].items()},
            pieces=[Piece(*fields) for fields in data["pieces"]],
            verbatim=[(str(file), int(offset), int(size)) for file, offset, size in data["verbatim"]],
            numpy=str(data["numpy"]),
        )

    def make(self, folder: Path, verbatim: bytes) -> None:
        """Write the weights files into `folder`, with one thread per processor.

        verbatim: the bytes that `self.verbatim` describes.
        """
        weights = {file: _new_file(folder / file, size) for file, size in self.sizes.items()}
        position = 0
        for file, offset, size in self.verbatim:
            part = np.frombuffer(verbatim, np.uint8, size, position)
            weights[file][offset : offset + size] = part
            position += size
        uses: dict[str, list[Piece]] = defaultdict(list)
        for piece in self.pieces:
            uses[piece.key].append(piece)

        def fill(key: str) -> None:
            parameter = random_parameter(key, self.shapes[key])
            for piece in uses[key]:
                rows = rows_of(parameter, channels_last=piece.channels_last)[piece.first : piece.first + piece.count]
                cast = Cast(piece.dtype, piece.rounded)
                piece.matrix(weights[piece.file])[piece.row : piece.row + piece.count] = cast(rows)

        with ThreadPoolExecutor() as pool:
            # The largest first, so that no thread is left with one at the end.
            for _ in pool.map(fill, sorted(uses, key=lambda key: -np.prod(self.shapes[key], dtype=np.int64))):
                pass


def _new_file(path: Path, size: int) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    # An empty file cannot be mapped.
    return np.memmap(path, np.uint8, "r+", shape=(size,)) if size else np.empty(0, np.uint8)
