"""A traced graph as a file: the same graph, without the weights that its module has."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx_ir as ir
from torch import nn

from ebca.export.checkpoint.tiny import build_tiny
from ebca.export.graph import kept_trace
from ebca.export.graph.traced_unet import TracedUNet


def _values(model: ir.Model) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def _nodes(model: ir.Model) -> list[tuple[object, ...]]:
    """Operators, what they read and write, and the shapes and dtypes of that."""
    return [
        (
            *(node.domain, node.op_type, [v and v.name for v in node.inputs]),
            *([(v.name, v.dtype, str(v.shape)) for v in node.outputs], sorted(map(str, node.attributes.values()))),
        )
        for node in model.graph
    ]


def test_a_kept_trace_is_the_trace_without_its_weights(tmp_path: Path) -> None:
    unet = build_tiny().unet
    taken: list[Path] = []

    def keep(module: nn.Module, make: "kept_trace.Make") -> ir.Model:
        path = tmp_path / "unet.onnx"
        made = make()
        nodes, values = _nodes(made), _values(made)
        kept_trace.save(made, module, path)
        read = kept_trace.load(path, module)
        assert _nodes(read) == nodes and _values(read).keys() == values.keys()
        assert all(np.array_equal(array, values[name]) for name, array in _values(read).items())
        weight = read.graph.initializers["unet.conv_in.weight"].const_value
        assert weight is not None and np.shares_memory(weight.numpy(), unet.conv_in.weight.numpy())
        taken.append(path)
        return read

    TracedUNet.of(unet, keep)
    written = taken[0].read_bytes()
    assert len(written) < sum(p.nbytes for p in unet.parameters()) / 3
    assert unet.conv_in.weight.numpy().tobytes() not in written
    # Another module's weights are not this one's: they are written in full.
    other = build_tiny(seed=1).unet
    TracedUNet.of(
        unet, lambda module, make: (kept_trace.save(m := make(), nn.ModuleDict({"unet": other}), taken[0]), m)[1]
    )
    assert unet.conv_in.weight.numpy().tobytes() in taken[0].read_bytes()
