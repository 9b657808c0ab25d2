"""A traced graph as a file, without the weights that its module still has.

Tracing takes most of the time of an export, and its result is small: a weight is written as its name, and read from the
module again. Whoever keeps the file sees to it that the module has the same weights.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import nn

from ebca.export.graph.component import forget_origin
from ebca.export.graph.fold import transposed

Make = Callable[[], ir.Model]
"""Traces a module."""

Keep = Callable[[nn.Module, Make], ir.Model]
"""(module, make) -> the graph that `make` traces from the module, or the same graph from where it is kept."""


def not_kept(module: nn.Module, make: Make) -> ir.Model:
    """Trace, and keep nothing."""
    return make()


# Smaller tensors are written as they are.
_SMALL_BYTES = 1024
# What a constant is of a weight, in the place of a file's name.
_ITSELF, _TRANSPOSED = "weight", "transposed"


def save(model: ir.Model, module: nn.Module, path: Path) -> None:
    """Write a graph that was traced from a module. Constants that are none of its weights are written in full.

    The graph must not be used afterwards.
    """
    weights = _Weights(module)
    model.metadata_props.clear()
    forget_origin(model.graph)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        place = weights.find(name, tensor) if tensor is not None and tensor.nbytes >= _SMALL_BYTES else None
        if tensor is not None and place is not None:
            value.const_value = ir.ExternalTensor(place, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ir.serde.serialize_model(model).SerializeToString())


def load(path: Path, module: nn.Module) -> ir.Model:
    """Read what `save` wrote. The graph shares the module's weights."""
    model = ir.load(path)
    weights = _Weights(module)
    for name, value in model.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = weights.tensor(name, str(value.const_value.location))
    return model


class _Weights:
    """The weights of a module, found by what a traced graph holds of them."""

    def __init__(self, module: nn.Module) -> None:
        self._arrays = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
        # The exporter folds the transpose that a Linear begins with, and gives the result a name of its own.
        self._by_transpose: dict[tuple[object, ...], list[str]] = {}
        for name, array in self._arrays.items():
            if array.ndim == 2:
                self._by_transpose.setdefault(_mark(array.T), []).append(name)

    def find(self, name: str, tensor: ir.TensorProtocol) -> str | None:
        """Where `tensor` has a constant's values from; None if they are no weight's."""
        array = tensor.numpy()
        if name in self._arrays and _equal(array, self._arrays[name]):
            return f"{_ITSELF} {name}"
        candidates = self._by_transpose.get(_mark(array), ()) if array.ndim == 2 else ()
        found = next((other for other in candidates if _equal(array, self._arrays[other].T)), None)
        return f"{_TRANSPOSED} {found}" if found is not None else None

    def tensor(self, name: str, place: str) -> ir.TensorProtocol:
        """The constant `name` from a place that `find` has named."""
        kind, _, weight = place.partition(" ")
        tensor = ir.tensor(self._arrays[weight], name=name)
        return transposed(tensor, (1, 0), name) if kind == _TRANSPOSED else tensor


def _mark(array: np.ndarray) -> tuple[object, ...]:
    """What equal matrices have in common, read from a few of their values."""
    return (array.shape, array.dtype.str, array[0, :16].tobytes())


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)
