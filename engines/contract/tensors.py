"""The description of a tensor: dtype and symbolic shape."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from ebca.engines.contract import dims, limits
from ebca.engines.contract.checked import Entry
from ebca.engines.contract.dims import Dim
from ebca.errors import EngineError

TO_CHANNELS_LAST, TO_CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""The axes of an image [B,C,h,w] as [B,h,w,C], and back."""

DTYPES = ("float32", "float16", "int64", "int32")


@dataclass(frozen=True)
class TensorSpec:
    """dtype ("float32", "int64", ...) and symbolic shape of one tensor."""

    dtype: str
    shape: tuple[Dim, ...]

    def equals(self, other: "TensorSpec") -> bool:
        """Whether both have the same dtype, and the same shape at all sizes."""
        return self.dtype == other.dtype and dims.same(self.shape, other.shape)


def nbytes_of(tensor: TensorSpec, sizes: Mapping[str, int]) -> int:
    """Bytes of a tensor at some sizes. Raises EngineError as `ebca.engines.contract.dims.evaluate`."""
    return math.prod(dims.shape(tensor.shape, sizes)) * np.dtype(tensor.dtype).itemsize


def read_tensors(entry: Entry, names: Collection[str] = dims.NAMES) -> dict[str, TensorSpec]:
    """Name to tensor, from an object of a manifest.

    Args:
        entry: the object.
        names: that symbolic dimensions may use.

    Raises:
        EngineError: a value of the wrong type, an unknown dtype, or a dimension that cannot be evaluated.
    """
    return {name: read_tensor(tensor, names) for name, tensor in entry.items()}


def read_tensor(entry: Entry, names: Collection[str] = dims.NAMES) -> TensorSpec:
    """One tensor, as in `read_tensors`."""
    return TensorSpec(entry["dtype"].choice(*DTYPES), _shape(entry["shape"], names))


def read_dimension(entry: Entry, names: Collection[str] = dims.NAMES) -> Dim:
    """A dimension. Raises EngineError if it cannot be evaluated with these names."""
    if not isinstance(entry.value, str):
        return entry.integer(1, limits.DIMENSION)
    try:
        dims.check(entry.name(), names)
    except EngineError as error:
        raise EngineError(f"{entry.path}: {error.problem}", error.remedy) from None
    return str(entry.value)


def _shape(entry: Entry, names: Collection[str]) -> tuple[Dim, ...]:
    return tuple(read_dimension(element, names) for element in entry.elements())
