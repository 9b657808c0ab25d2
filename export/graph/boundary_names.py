"""Stable, readable names for the tensors between segments: what a tensor is, and where it comes from."""

from collections.abc import Mapping

import onnx_ir as ir

from ebca.errors import ExportError
from ebca.export.graph.op_node import int_attribute, is_op
from ebca.export.graph.placement import TIME_LEVEL, Placement, operands

OP_ROLES = ("q", "k", "v", "out", "g")


def boundary_names(placement: Placement) -> dict[ir.Value, str]:
    """A name for every value that needs a buffer outside the segments.

    Raises:
        ExportError: a value is not float32, or two have the same name.
    """
    namer = _Namer({value: str(value.name) for value in placement.graph.outputs})
    for value in placement.graph.inputs:
        namer.name(value, str(value.name))
    for node in placement.nodes:
        if is_op(node):
            layer = int_attribute(node, "layer")
            for operand, role in zip((*node.inputs, *node.outputs), OP_ROLES, strict=True):
                assert operand is not None
                namer.name(operand, f"layer_{layer:02}.{role}")
    for node in placement.nodes:
        for value in node.outputs:
            if value not in namer.names and placement.crosses(value):
                _name_crossing(namer, placement, node, value)
    _check(namer.names)
    return namer.names


def _name_crossing(namer: "_Namer", placement: Placement, node: ir.Node, value: ir.Value) -> None:
    level, shape = placement.level[node], placement.symbols.shape(value)
    readers = placement.consumers(value)
    if any(_joins(placement, r) and placement.level[r] > level + 1 for r in readers):
        namer.number(value, "skip")
    elif "contexts" in shape:
        stem = f"contexts_{level:02}"
        if stem in namer.names.values():
            namer.number(value, stem)
        else:
            namer.name(value, stem)
    elif level == TIME_LEVEL:
        namer.number(value, "time")
    else:
        namer.number(value, f"hidden_{level:02}")


def _joins(placement: Placement, reader: ir.Node) -> bool:
    """Whether a node joins a skip to what comes up: at once, or after the residual of ControlNets is added."""
    if reader.op_type == "Concat":
        return True
    adds_input = reader.op_type == "Add" and any(value in placement.graph.inputs for value in operands(reader))
    return adds_input and any(n.op_type == "Concat" for n in placement.consumers(reader.outputs[0]))


def _check(names: Mapping[ir.Value, str]) -> None:
    for value, text in names.items():
        if value.dtype != ir.DataType.FLOAT:
            raise ExportError(f"boundary tensor '{text}' (from '{value.name}') is {value.dtype}, expected float32")
    if len(set(names.values())) != len(names):
        raise ExportError("two boundary tensors of the UNet have the same name")


class _Namer:
    """Names values once; outputs of the graph keep the names they have."""

    def __init__(self, outputs: Mapping[ir.Value, str]) -> None:
        self.names: dict[ir.Value, str] = {}
        self._outputs = outputs
        self._counts: dict[str, int] = {}

    def name(self, value: ir.Value, text: str) -> None:
        self.names.setdefault(value, self._outputs.get(value) or text)

    def number(self, value: ir.Value, stem: str) -> None:
        self._counts[stem] = self._counts.get(stem, -1) + 1
        self.name(value, f"{stem}_{self._counts[stem]}")
