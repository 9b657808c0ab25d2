"""Finds the recipe of an engine directory: which parameters of a built-in model its weights files hold, and how.

A stored tensor is looked at as a matrix, and as its transpose. Its rows must be runs of rows of parameters, so plain,
transposed, channels-last, concatenated and interleaved weights are all found. Everything else is kept as it is.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx

from ebca.bench.gpu_check.packed.recipe import CASTS, Cast, Piece, Recipe, rows_of
from ebca.engines.contract.directory import EngineDirectory
from ebca.export.checkpoint.random_weights import random_parameter

_DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}
_HEAD = 16  # numbers that tell rows apart before they are compared


@dataclass(frozen=True)
class _Stored:
    """A tensor in a weights file."""

    file: str
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Run:
    """Rows of a parameter, from `first` on."""

    key: str
    channels_last: bool
    first: int


class _Parameters:
    """The parameters of a model, and an index of their rows."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda item: random_parameter(*item), shapes.items())
            self._values = dict(zip(shapes, made, strict=True))
        self.rows = cache(self._rows)
        self._index = cache(self._make_index)

    def _rows(self, key: str, channels_last: bool) -> np.ndarray:
        return rows_of(self._values[key], channels_last=channels_last)

    def find(self, cast: Cast, matrix: np.ndarray, row: int) -> _Run | None:
        """The rows that may begin at `row` of a stored matrix; None if no parameter has such a row."""
        return self._index(cast).get((matrix.shape[1], _head(matrix, row)))

    def _make_index(self, cast: Cast) -> dict[tuple[int, bytes], _Run]:
        found: dict[tuple[int, bytes], _Run] = {}
        for key, value in self._values.items():
            for channels_last in (False, True) if value.ndim > 2 else (False,):
                rows = self.rows(key, channels_last)
                heads = cast(rows if rows.shape[1] == 1 else rows[:, :_HEAD])
                # Vectors are only found from their beginning.
                for first in range(len(rows)) if rows.shape[1] > 1 else (0,):
                    found.setdefault((rows.shape[1], _head(heads, first)), _Run(key, channels_last, first))
        return found


def find_recipe(directory: EngineDirectory, model: str | None, shapes: Mapping[str, tuple[int, ...]]) -> Recipe:
    """The recipe of all weights files of an engine directory.

    Args:
        directory: the engine directory.
        model, shapes: the built-in model that it was exported from, and its parameters; None and nothing if it was not.
    """
    stored = sorted(set(_stored_tensors(directory)), key=lambda one: (one.file, one.offset, -one.nbytes))
    sizes = {file: directory.manifest.files[file].size for file in sorted({one.file for one in stored})}
    parameters = _Parameters(shapes)
    pieces: list[Piece] = []
    verbatim: list[tuple[str, int, int]] = []
    for file, size in sizes.items():
        weights = np.memmap(directory.file(file), np.uint8, "r")
        end = 0
        for one in stored:
            # Several graphs read the same tensors, some in another shape.
            if one.file == file and one.offset >= end and (made := _pieces(one, weights, parameters)):
                verbatim += _rest(file, weights, end, one.offset)
                pieces += made
                end = one.offset + one.nbytes
        verbatim += _rest(file, weights, end, size)
    used = {piece.key for piece in pieces}
    return Recipe(model, sizes, {key: shape for key, shape in shapes.items() if key in used}, pieces, verbatim)


def _stored_tensors(directory: EngineDirectory) -> Iterator[_Stored]:
    for name in directory.manifest.files:
        if not name.endswith(".onnx"):
            continue
        graph = onnx.load(directory.file(name), load_external_data=False).graph
        for tensor in graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            where = {entry.key: entry.value for entry in tensor.external_data}
            file = (Path(name).parent / where["location"]).as_posix()
            dtype = _DTYPES.get(tensor.data_type, "")
            yield _Stored(file, int(where.get("offset", 0)), int(where["length"]), dtype, tuple(tensor.dims))


def _pieces(one: _Stored, weights: np.ndarray, parameters: _Parameters) -> list[Piece]:
    """The pieces of a stored tensor; empty if it is not made of rows of parameters."""
    if not one.dtype or not one.shape or not one.nbytes:
        return []
    numbers = one.nbytes // np.dtype(one.dtype).itemsize
    rows = numbers if numbers == max(one.shape) else one.shape[0]
    last = one.shape[-1]
    layouts = [(rows, numbers // rows, False)] + ([(last, numbers // last, True)] if rows < numbers else [])
    for cast in (cast for cast in CASTS if cast.dtype == one.dtype):
        for rows, columns, transposed in layouts:
            whole = Piece(
                one.file, one.offset, rows, columns, cast.dtype, cast.rounded, transposed,
                row=0, count=0, key="", first=0, channels_last=False,
            )  # fmt: skip
            if made := _runs(whole, weights, parameters, cast):
                return made
    return []


def _runs(whole: Piece, weights: np.ndarray, parameters: _Parameters, cast: Cast) -> list[Piece]:
    """The matrix as runs of rows; empty if a row is not found."""
    matrix, row, made = whole.matrix(weights), 0, list[Piece]()
    while row < whole.rows:
        run = parameters.find(cast, matrix, row)
        if run is None:
            return []
        candidates = cast(parameters.rows(run.key, run.channels_last)[run.first : run.first + whole.rows - row])
        same = (_bits(matrix[row : row + len(candidates)]) == _bits(candidates)).all(axis=1)
        count = len(same) if same.all() else int(same.argmin())
        if count == 0:
            return []
        fields = {"row": row, "count": count, "key": run.key, "first": run.first, "channels_last": run.channels_last}
        made.append(Piece(**{**vars(whole), **fields}))
        row += count
    return made


def _rest(file: str, weights: np.ndarray, begin: int, end: int) -> list[tuple[str, int, int]]:
    """What lies between two tensors; new files are zero anyway."""
    return [(file, begin, end - begin)] if weights[begin:end].any() else []


def _head(matrix: np.ndarray, row: int) -> bytes:
    return (matrix[row : row + _HEAD, 0] if matrix.shape[1] == 1 else matrix[row, :_HEAD]).tobytes()


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")
