"""Small tools for rewriting graphs: what a value is made of, who reads it, and putting nodes in the place of others."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

MICROSOFT = "com.microsoft"
"""ONNX Runtime's own operators."""


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """The initializer of that name, which is added on first use."""
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        graph.initializers.add(
            ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def replace(
    graph: ir.Graph,
    at: ir.Node,
    old: Sequence[ir.Node],
    new: Sequence[ir.Node],
    old_values: Sequence[ir.Value],
    new_values: Sequence[ir.Value],
) -> None:
    """Put nodes in the place of others.

    Args:
        graph: of the nodes.
        at: the node of `old` where the new ones go.
        old, new: nodes to remove, and to insert.
        old_values, new_values: what readers of the old values read now; names, shapes and dtypes stay the same.
    """
    for before, after in zip(old_values, new_values, strict=True):
        after.name, after.shape, after.type = before.name, before.shape, before.type
    ir.convenience.replace_nodes_and_values(graph, at, old, new, old_values, new_values)


def drop_unused(graph: ir.Graph) -> None:
    """Remove initializers that nothing reads."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)


def transpose(value: ir.Value, permutation: tuple[int, ...]) -> ir.Node:
    """A Transpose of a value."""
    node = ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", permutation)])
    node.outputs[0].type = value.type
    return node


def cast(value: ir.Value, to: ir.DataType) -> ir.Node:
    """A Cast of a value."""
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))])
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(to), value.shape
    return node


def given(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node, without those that are left out."""
    return [value for value in node.inputs if value is not None]


def producer(value: ir.Value, op_type: str) -> ir.Node | None:
    """The node that a value comes from, if it is of that operator."""
    node = value.producer()
    return node if node is not None and node.op_type == op_type else None


def only_user(value: ir.Value, op_type: str | None = None) -> ir.Node | None:
    """The node that alone reads a value; None if there are others, or if it is of another operator."""
    users = value.uses()
    if len(users) != 1 or value.is_graph_output():
        return None
    node = users[0].node
    return node if op_type in (None, node.op_type) else None


def summands(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The two tensors whose sum a value is, if neither of them is a weight."""
    add = producer(value, "Add")
    if add is None or any(part.is_initializer() for part in given(add)):
        return None
    a, b = given(add)
    return a, b


def biased(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """(x, bias) if a value is x plus a vector of weights."""
    add = producer(value, "Add")
    if add is None:
        return None
    a, b = given(add)
    for x, bias in ((a, b), (b, a)):
        if bias.is_initializer() and rank(bias) == 1 and not x.is_initializer():
            return x, bias
    return None


def permutation(node: ir.Node) -> tuple[int, ...]:
    """Of a Transpose."""
    return tuple(node.attributes["perm"].as_ints())


def epsilon(node: ir.Node) -> float:
    """Of a norm."""
    return node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5


def rank(value: ir.Value) -> int | None:
    """Number of dimensions, if known."""
    return None if value.shape is None else len(value.shape)


def shape_of(value: ir.Value) -> tuple[int | str | None, ...]:
    """Dimensions, symbolic ones as text; None for an unknown dimension, and () for an unknown shape."""
    if value.shape is None:
        return ()
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values are known to have the same shape."""
    return None not in shape_of(a) and shape_of(a) != () and shape_of(a) == shape_of(b)
