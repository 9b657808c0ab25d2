"""A traced graph as a file, without the weights that its module still has.

Tracing takes most of the time of an export, and its result is small: a weight is written as its name, and read from the
module again. Whoever keeps the file sees to it that the module has the same weights.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

Make = Callable[[], ir.Model]
"""Traces a module."""

Keep = Callable[[nn.Module, Make], ir.Model]
"""(module, make) -> the graph that `make` traces from the module, or the same graph from where it is kept."""


def not_kept(module: nn.Module, make: Make) -> ir.Model:
    """Trace, and keep nothing."""
    return make()


# Smaller tensors are written as they are.
_SMALL_BYTES = 1024
_OF_MODULE = "weights of the module"


def save(model: ir.Model, module: nn.Module, path: Path) -> None:
    """Write a graph that was traced from a module. Constants that are none of its weights are written in full.

    The graph must not be used afterwards.
    """
    weights = _weights(module)
    for node in model.graph:
        node.metadata_props.clear()  # stack traces of the exporter
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= _SMALL_BYTES and _is_weight(tensor, weights.get(name)):
            value.const_value = ir.ExternalTensor(
                _OF_MODULE, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ir.serde.serialize_model(model).SerializeToString())


def load(path: Path, module: nn.Module) -> ir.Model:
    """Read what `save` wrote. The graph shares the module's weights."""
    model = ir.load(path)
    weights = _weights(module)
    for name, value in model.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(weights[name].detach().numpy(), name=name)
    return model


def _weights(module: nn.Module) -> Mapping[str, Tensor]:
    return module.state_dict()


def _is_weight(tensor: ir.TensorProtocol, weight: Tensor | None) -> bool:
    if weight is None or tuple(weight.shape) != tuple(tensor.shape):
        return False
    written, kept = tensor.numpy(), weight.detach().numpy()
    return written.dtype == kept.dtype and np.array_equal(written, kept)
