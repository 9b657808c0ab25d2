"""Small tools for rewriting graphs."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


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


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, if known."""
    return None if value is None or value.shape is None else len(value.shape)


def shape_of(value: ir.Value | None) -> tuple[int | str | None, ...]:
    """Dimensions, symbolic ones as text; None for an unknown dimension, and () for an unknown shape."""
    if value is None or value.shape is None:
        return ()
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values are known to have the same shape."""
    return None not in shape_of(a) and shape_of(a) != () and shape_of(a) == shape_of(b)
