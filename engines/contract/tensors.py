"""The description of a tensor: dtype and symbolic shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ebca.engines.contract.dims import Dim

TO_CHANNELS_LAST, TO_CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""The axes of an image [B,C,h,w] as [B,h,w,C], and back."""


@dataclass(frozen=True)
class TensorSpec:
    """dtype ("float32", "int64", ...) and symbolic shape of one tensor."""

    dtype: str
    shape: tuple[Dim, ...]


def tensors_from_json(data: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """Name to tensor, from an entry in `manifest.json`."""
    return {name: TensorSpec(t["dtype"], tuple(t["shape"])) for name, t in data.items()}
