"""Constant folding that a trace leaves to us."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def fold_transposes(model: ir.Model) -> None:
    """Replace Transpose(weight) by the transposed weight, computed when it is written."""
    graph = model.graph
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" and node.inputs else None
        if weight is None or not weight.is_initializer() or weight.const_value is None:
            continue
        tensor = weight.const_value
        permutation = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        order = list(permutation) if permutation is not None else list(range(len(tensor.shape)))[::-1]
        name = f"{weight.name}.T"
        if name not in graph.initializers:
            lazy = transposed(tensor, order, name)
            value = ir.Value(name=name, shape=lazy.shape, type=ir.TensorType(lazy.dtype), const_value=lazy)
            graph.initializers.add(value)
        ir.convenience.replace_all_uses_with(node.outputs[0], graph.initializers[name])
        graph.remove(node)


def transposed(tensor: ir.TensorProtocol, order: Sequence[int], name: str) -> ir.LazyTensor:
    """A tensor with its axes in another order, computed each time it is read."""
    return ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(tensor.numpy().transpose(order)), name=name),
        dtype=tensor.dtype,
        shape=ir.Shape([tensor.shape[i] for i in order]),
        name=name,
        cache=False,
    )
