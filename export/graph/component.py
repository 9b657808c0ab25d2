"""Write a graph as a component: canonical ONNX, one weights file, and the lowered graphs on the same weights."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ebca.engines.contract.manifest import Component, TensorSpec
from ebca.errors import ExportError
from ebca.export.graph.cuda.channels_last import channels_last
from ebca.export.graph.cuda.expand import expand_fused
from ebca.export.graph.cuda.fuse import fuse_for_cuda
from ebca.export.graph.dtypes import FLOAT, HALF, dtype_name
from ebca.export.graph.emulate import emulate
from ebca.export.graph.half import half_weight
from ebca.export.graph.lower import lower_for_onnxruntime
from ebca.export.graph.scratch import scratch

# ONNX IR version 11: the lowest that opset 23 belongs to.
IR_VERSION = 11
# Smaller constants stay inside the graph file, where shape inference can see them.
_EXTERNAL_FROM_BYTES = 1024


def write_component(
    graph: ir.Graph,
    folder: Path,
    name: str,
    *,
    half: bool,
    float32_only: bool = False,
    for_gpu: bool = False,
    images: Collection[str] = (),
    weights_of: Component | None = None,
) -> Component:
    """Write `folder/name.onnx`, `.onnx.data`, and the graph lowered for ONNX Runtime: `.ort.onnx` for a CPU, and for a
    graph that computes in float16 also `.cuda.onnx` for a GPU, whose arithmetic `.ort.onnx` then emulates.

    Args:
        graph: graph whose inputs and outputs have shapes as in `ebca.engines.contract.dims`: in float32, or as
            `ebca.export.graph.half.to_half` made it. It is changed if `half` is set.
        folder: root of the engine directory; `name` may contain folders.
        float32_only: the component must not run at a lower precision.
        for_gpu: write `.cuda.onnx` for a float32 graph too.
        half: store the weights of a float32 graph as float16, followed by a Cast to float32 that an engine folds when
            it prepares.
        images: inputs and outputs that have their channels last in `.cuda.onnx`.
        weights_of: a component in the same folder whose weights file is used too, if it has all weights of the graph.

    Returns:
        The component with paths relative to `folder`.

    Raises:
        ExportError: a weight does not fit float16.
    """
    forget_origin(graph)
    if half:
        _store_half(graph)
    (folder / f"{name}.onnx").parent.mkdir(parents=True, exist_ok=True)
    weights = _write_canonical(graph, folder, name, weights_of)
    return Component(
        graph=f"{name}.onnx",
        weights=weights,
        lowered=_write_lowered(folder, name, images, in_half=computes_in_half(graph), for_gpu=for_gpu),
        float32_only=float32_only,
        inputs=_specs(graph.inputs),
        outputs=_specs(graph.outputs),
        scratch=scratch(graph),
    )


def _write_canonical(graph: ir.Graph, folder: Path, name: str, weights_of: Component | None) -> str | None:
    """Write the graph and its weights file; returns the name of the latter, None if all constants are small."""
    path, weights = folder / f"{name}.onnx", f"{name}.onnx.data"
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="ebca")
    if weights_of is not None and _refer_to(graph, folder / weights_of.graph):
        ir.save(model, path)
        return weights_of.weights
    if any(
        v.const_value is not None and v.const_value.nbytes >= _EXTERNAL_FROM_BYTES for v in graph.initializers.values()
    ):
        ir.save(model, path, external_data=Path(weights).name, size_threshold_bytes=_EXTERNAL_FROM_BYTES)
        return weights
    ir.save(model, path)
    return None


def _refer_to(graph: ir.Graph, path: Path) -> bool:
    """Take the weights of a graph from those of a written one in the same folder, found by name and compared. False if
    it lacks any; then nothing is changed."""
    others = ir.load(path).graph.initializers
    found: list[tuple[ir.Value, ir.TensorProtocol]] = []
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < _EXTERNAL_FROM_BYTES:
            continue
        other = others[name].const_value if name in others else None
        if other is None or other.dtype != tensor.dtype or not np.array_equal(other.numpy(), tensor.numpy()):
            return False
        found.append((value, other))
    for value, other in found:
        value.const_value = other
    return True


def _write_lowered(folder: Path, name: str, images: Collection[str], *, in_half: bool, for_gpu: bool) -> dict[str, str]:
    """Write the canonical graph's lowered forms; returns backend -> file."""
    files = {"onnxruntime": f"{name}.ort.onnx"}
    on_cpu = ir.load(folder / f"{name}.onnx")
    if in_half or for_gpu:
        files["onnxruntime-cuda"] = f"{name}.cuda.onnx"
        on_gpu = ir.load(folder / f"{name}.onnx")
        fuse_for_cuda(on_gpu, HALF if in_half else FLOAT)
        lower_for_onnxruntime(on_gpu)
        channels_last(on_gpu.graph, images)
        ir.save(on_gpu, folder / files["onnxruntime-cuda"])
    if in_half:
        fuse_for_cuda(on_cpu)
        expand_fused(on_cpu)
        emulate(on_cpu)
    lower_for_onnxruntime(on_cpu)
    ir.save(on_cpu, folder / files["onnxruntime"])
    return files


def computes_in_half(graph: ir.Graph) -> bool:
    """Whether any node other than a Cast returns float16."""
    return any(v.dtype == HALF for node in graph if node.op_type != "Cast" for v in node.outputs)


def forget_origin(graph: ir.Graph) -> None:
    """Remove the exporter's stack traces, which contain paths of this machine."""
    graph.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()


def _specs(values: "ir._graph_containers.GraphInputs | ir._graph_containers.GraphOutputs") -> Mapping[str, TensorSpec]:
    specs = {}
    for value in values:
        dtype = dtype_name(value.dtype)
        if value.shape is None or dtype is None:
            raise ExportError(f"tensor '{value.name}' has no known shape or dtype ({value.dtype})")
        shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
        specs[str(value.name)] = TensorSpec(dtype, shape)
    return specs


def _store_half(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != FLOAT or tensor.nbytes < _EXTERNAL_FROM_BYTES:
            continue
        half = half_weight(value, f"{name}.fp16")
        wide = ir.Value(name=f"{name}.fp32", shape=tensor.shape, type=ir.TensorType(FLOAT))
        cast = ir.Node("", "Cast", [half], [ir.AttrInt64("to", int(FLOAT))], outputs=[wide])
        ir.convenience.replace_all_uses_with(value, wide)
        graph.initializers.pop(name)
        graph.initializers.add(half)
        graph.insert_before(graph[0], cast)
