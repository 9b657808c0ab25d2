"""The plain UNet as one graph, by the same path as the segments: trace, write, lower, prepare, open.

The yardstick of every backend: what the cuts and the energy update cost is the difference to this.
"""

import math
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx_ir as ir
from diffusers import UNet2DConditionModel
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ebca.bench.subject import Subject
from ebca.errors import ExportError
from ebca.export.graphs import write_component
from ebca.export.quiet import quiet
from ebca.export.split import fold_transposes, is_op
from ebca.export.symbols import Symbols
from ebca.export.trace import OP_DOMAIN, trace

_NAME = "unet"


class OnePiece:
    """The opened graph, bound to the subject's inputs. Owns a temporary folder; a context manager.

    Args:
        unet: float32, in eval mode.
        subject: whose backend, precision and inputs to use.

    Raises:
        ExportError: no room for the graph (twice the weights, in the folder for temporary files).
    """

    def __init__(self, unet: UNet2DConditionModel, subject: Subject) -> None:
        backend, executor = subject.engine.backend, subject.executor
        self._folder = Path(tempfile.mkdtemp(prefix="ebca-bench-"))
        try:
            _check_room(self._folder, 4 * sum(p.numel() for p in unet.parameters()))
            with quiet():
                component = write_component(plain_graph(unet), self._folder, _NAME, half=False)
            graph = self._folder / component.graph_for(backend.name)
            if backend.prepares:
                target = self._folder / "prepared" / f"{_NAME}.onnx"
                target.parent.mkdir()
                backend.prepare(graph, target)
                graph = target
            self.noise = executor.noise
            self._call = executor.record_whole(backend.open(graph, component))
            if os.name == "posix":
                # Mapped files stay; a process that is killed then leaves nothing behind.
                self.close()
        except BaseException:
            self.close()
            raise

    def run(self) -> np.ndarray:
        """Noise prediction [B,C,h,w], a view that the next run overwrites."""
        self._call()
        return self.noise

    def close(self) -> None:
        """Delete the folder. Deleting twice is fine."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def plain_graph(unet: UNet2DConditionModel) -> ir.Graph:
    """(sample, timestep, contexts [B,S,T,D]) -> noise and the contexts as they are; standard operators, only context 0
    is read."""
    model = trace(unet)
    fold_transposes(model)
    graph = model.graph
    sample, timestep, contexts = graph.inputs
    symbols = Symbols(
        [
            (sample, {0: "batch", 2: "height", 3: "width"}),
            (timestep, {0: "batch"}),
            (contexts, {0: "batch", 1: "contexts", 2: "tokens"}),
        ]
    )
    unchanged = ir.Node("", "Identity", [contexts])
    unchanged.outputs[0].name, unchanged.outputs[0].type = str(graph.outputs[1].name), contexts.type
    graph.append(unchanged)
    graph.outputs[1] = unchanged.outputs[0]
    first = ir.tensor(np.array(0, np.int64), name="first_context")
    zero = ir.Value(name=first.name, shape=first.shape, type=ir.TensorType(first.dtype), const_value=first)
    graph.initializers.add(zero)
    for node in [n for n in graph if is_op(n)]:
        _drop_update(node)
        _plain_attention(graph, node, zero)
    RemoveUnusedNodesPass()(model)
    named = {value: symbols.shape(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for value in node.outputs:
            # In torch's symbols, which the names of the inputs replace; engines infer them again.
            value.shape = None
    for value, shape in named.items():
        value.shape = ir.Shape(shape)
    graph.opset_imports.pop(OP_DOMAIN, None)
    return graph


def _drop_update(node: ir.Node) -> None:
    """c + g Wk  ->  c"""
    (product,) = [n for n, _ in node.outputs[1].uses()]
    (total,) = [n for n, _ in product.outputs[0].uses()]
    if (product.op_type, total.op_type) != ("MatMul", "Add"):
        raise ExportError(f"'{node.name}' is followed by {product.op_type} and {total.op_type}, not MatMul and Add")
    (before,) = [v for v in total.inputs if v is not product.outputs[0]]
    assert before is not None
    ir.convenience.replace_all_uses_with(total.outputs[0], before)


def _plain_attention(graph: ir.Graph, node: ir.Node, zero: ir.Value) -> None:
    q, k, v = node.inputs
    out = node.outputs[0]
    assert q is not None and k is not None and v is not None and q.shape is not None
    channels = q.shape[-1]
    assert isinstance(channels, int)
    heads = node.attributes["num_heads"].as_int()
    picked = []
    for value in (k, v):
        gather = ir.Node("", "Gather", [value, zero], [ir.AttrInt64("axis", 1)])
        gather.outputs[0].type = value.type
        gather.outputs[0].name = f"{value.name}.first"
        picked.append(gather)
    attention = ir.Node(
        "",
        "Attention",
        [q, picked[0].outputs[0], picked[1].outputs[0]],
        [
            ir.AttrInt64("q_num_heads", heads),
            ir.AttrInt64("kv_num_heads", heads),
            ir.AttrFloat32("scale", 1 / math.sqrt(channels // heads)),
        ],
    )
    attention.outputs[0].type = out.type
    attention.outputs[0].name = f"{out.name}.plain"
    graph.insert_before(node, [*picked, attention])
    ir.convenience.replace_all_uses_with(out, attention.outputs[0])


def _check_room(folder: Path, weights: int) -> None:
    free, wanted = shutil.disk_usage(folder).free, int(2.2 * weights) + (64 << 20)
    if free < wanted:
        raise ExportError(
            f"'{folder.parent}' has {free / 1e9:.1f} GB free, one_piece needs {wanted / 1e9:.1f} GB; "
            "set TMPDIR to a folder with room, or leave one_piece out of --compare-with"
        )
