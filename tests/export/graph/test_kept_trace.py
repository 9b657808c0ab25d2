"""A traced graph as a file: the same graph, without the weights that its module has."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx_ir as ir
from torch import nn

from ebca.export.checkpoint.tiny import build_tiny
from ebca.export.graph import kept_trace, traced_unet


def _values(model: ir.Model) -> dict[str, np.ndarray]:
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}


def _nodes(model: ir.Model) -> list[tuple[object, ...]]:
    """Operators with their attributes, what they read and write, and the shapes and dtypes of that."""
    nodes: list[tuple[object, ...]] = []
    for node in model.graph:
        outputs = [(value.name, value.dtype, str(value.shape)) for value in node.outputs]
        # A file holds floats in float32, as the engine will.
        pairs = {name: attribute.value for name, attribute in node.attributes.items()}
        values = {n: float(np.float32(v)) if isinstance(v, float) else v for n, v in pairs.items()}
        nodes.append((node.domain, node.op_type, [v and v.name for v in node.inputs], outputs, values))
    return nodes


def test_a_kept_trace_is_the_trace_without_its_weights(tmp_path: Path) -> None:
    unet = build_tiny().unet
    module = nn.ModuleDict({"unet": unet})
    path = tmp_path / "unet.onnx"
    made = traced_unet.trace(unet)
    nodes, values = _nodes(made), _values(made)
    kept_trace.save(made, module, path)
    written = path.read_bytes()
    assert len(written) < sum(p.nbytes for p in unet.parameters()) / 10
    assert unet.conv_in.weight.numpy().tobytes() not in written

    read = kept_trace.load(path, module)
    assert _nodes(read) == nodes and _values(read).keys() == values.keys()
    assert all(np.array_equal(array, values[name]) for name, array in _values(read).items())
    weight = read.graph.initializers["unet.conv_in.weight"].const_value
    assert weight is not None and np.shares_memory(weight.numpy(), unet.conv_in.weight.numpy())


def test_weights_of_another_module_are_written_in_full(tmp_path: Path) -> None:
    unet = build_tiny().unet
    kept_trace.save(traced_unet.trace(unet), nn.ModuleDict({"unet": build_tiny(seed=1).unet}), tmp_path / "unet.onnx")
    assert unet.conv_in.weight.numpy().tobytes() in (tmp_path / "unet.onnx").read_bytes()
