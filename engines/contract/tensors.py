"""The description of a tensor: dtype and symbolic shape."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebca.engines.contract import dims
from ebca.engines.contract.dims import Dim

TO_CHANNELS_LAST, TO_CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""The axes of an image [B,C,h,w] as [B,h,w,C], and back."""


@dataclass(frozen=True)
class TensorSpec:
    """dtype ("float32", "int64", ...) and symbolic shape of one tensor."""

    dtype: str
    shape: tuple[Dim, ...]


def nbytes_of(tensor: TensorSpec, sizes: Mapping[str, int]) -> int:
    """Bytes of a tensor at some sizes. Raises EngineError as `ebca.engines.contract.dims.evaluate`."""
    return math.prod(dims.shape(tensor.shape, sizes)) * np.dtype(tensor.dtype).itemsize


def tensors_from_json(data: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """Name to tensor, from an entry in `manifest.json`."""
    return {name: TensorSpec(t["dtype"], tuple(t["shape"])) for name, t in data.items()}
