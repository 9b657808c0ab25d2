"""What a graph needs at least besides its inputs, its outputs and its weights, for an estimate of memory."""

import math
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product

import onnx_ir as ir

from ebca.engines.contract import dims
from ebca.engines.contract.dims import Dim
from ebca.engines.contract.tensors import TensorSpec, nbytes_of
from ebca.errors import EngineError
from ebca.export.graph.dtypes import dtype_name

# Operators that no library computes in place, or as a part of the one before: their inputs and their outputs exist at
# the same time.
_WHOLE = {"Conv", "MatMul", "Resize", "Attention", "MultiHeadAttention"}

# Sizes at which different nodes need most: small and large images, long ones, many rows, long prompts.
_PROBES = tuple(
    {"batch": batch, "contexts": contexts, "tokens": tokens, "height": height, "width": width}
    for (height, width), batch, (contexts, tokens) in product(
        ((8, 8), (64, 64), (512, 512), (8, 4096)), (1, 64), ((1, 77), (8, 77), (1, 4096))
    )
)
# Where graphs that are traced as a whole have dimensions such as `((8*height)//2)`.
_EXPRESSION = re.compile(r"[\w\s()+\-*/]+")
_POINTS = ({"batch": 3, "height": 1009, "width": 2003}, {"batch": 7, "height": 4099, "width": 1511})
_ATOMS = [(factor, *names) for factor in (1, 2, 4, 8, 16) for names in (("height",), ("width",), ("height", "width"))]


def scratch(graph: ir.Graph) -> tuple[tuple[TensorSpec, ...], ...]:
    """The tensors that exist at the same time, for each node that needs the most memory at some sizes.

    Args:
        graph: its values have shapes in the names of `ebca.engines.contract.dims`. What is not known is left out.

    Returns:
        See `ebca.engines.contract.manifest.Component.scratch`.
    """
    outside = {id(value) for value in (*graph.inputs, *graph.outputs)}
    nodes = [tuple(_tensors(node, outside)) for node in graph if node.op_type in _WHOLE]
    found = dict.fromkeys(max(nodes, key=lambda node: _nbytes(node, sizes), default=()) for sizes in _PROBES)
    return tuple(node for node in found if node)


def _tensors(node: ir.Node, outside: set[int]) -> Iterator[TensorSpec]:
    """The node's tensors that depend on the sizes of a call, and that the caller does not provide."""
    values: Iterable[ir.Value | None] = dict.fromkeys((*node.inputs, *node.outputs))
    for value in values:
        if value is None or id(value) in outside or value.shape is None:
            continue
        dtype, shape = dtype_name(value.dtype), tuple(_dim(d) for d in value.shape)
        known = tuple(dim for dim in shape if dim is not None)
        if dtype is not None and known == shape and any(isinstance(dim, str) for dim in known):
            yield TensorSpec(dtype, known)


def _dim(dim: int | ir.SymbolicDim) -> Dim | None:
    """A dimension in the language of `ebca.engines.contract.dims`; None if it has none there."""
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    return _in_language(dim.value)


@cache
def _in_language(text: str) -> str | None:
    try:
        dims.evaluate(text, {**_POINTS[0], "contexts": 1, "tokens": 1})
    except EngineError:
        pass
    else:
        return text
    if not _EXPRESSION.fullmatch(text):
        return None
    try:
        values = [eval(compile(text, "<dimension>", "eval"), {"__builtins__": {}}, dict(point)) for point in _POINTS]
    except (SyntaxError, NameError, ArithmeticError, TypeError):
        return None
    for factor, *names in _ATOMS:
        if values == [factor * math.prod(point[name] for name in names) for point in _POINTS]:
            return "*".join([str(factor), *names] if factor > 1 else names)
    return None


def _nbytes(node: tuple[TensorSpec, ...], sizes: dict[str, int]) -> int:
    return sum(nbytes_of(tensor, sizes) for tensor in node)
