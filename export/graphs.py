"""Write a graph as a component: canonical ONNX, one weights file, and the lowered graphs on the same weights."""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from ebca.engines.contract.manifest import Component, TensorSpec
from ebca.errors import ExportError
from ebca.export.half import emulate, half_weight
from ebca.export.lower import lower_for_onnxruntime

# ONNX IR version 11: the lowest that opset 23 belongs to.
IR_VERSION = 11
# Smaller constants stay inside the graph file, where shape inference can see them.
_EXTERNAL_FROM_BYTES = 1024
_DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64", ir.DataType.FLOAT16: "float16"}


def write_component(graph: ir.Graph, folder: Path, name: str, *, half: bool, float32_only: bool = False) -> Component:
    """Write `folder/name.onnx`, `.onnx.data`, and the graph lowered for ONNX Runtime: `.ort.onnx` for a CPU, and for a
    graph that computes in float16 also `.cuda.onnx` for a GPU.

    Args:
        graph: graph whose inputs and outputs have shapes as in `ebca.engines.contract.dims`: in float32, or as
            `ebca.export.half.to_half` made it. It is changed where `half` is set.
        folder: root of the engine directory; `name` may hold folders.
        float32_only: the component must not run at a lower precision.
        half: store the weights of a float32 graph as float16, followed by a Cast to float32 that an engine folds when
            it prepares.

    Returns:
        The component with paths relative to `folder`.

    Raises:
        ExportError: a weight does not fit float16.
    """
    _forget_origin(graph)
    if half:
        _store_half(graph)
    path = folder / f"{name}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="ebca")
    weights = f"{name}.onnx.data"
    external = any(
        v.const_value is not None and v.const_value.nbytes >= _EXTERNAL_FROM_BYTES for v in graph.initializers.values()
    )
    if external:
        ir.save(model, path, external_data=Path(weights).name, size_threshold_bytes=_EXTERNAL_FROM_BYTES)
    else:
        ir.save(model, path)
    lowered = {"onnxruntime": f"{name}.ort.onnx"}
    on_cpu = ir.load(path)
    if computes_in_half(graph):
        lowered["onnxruntime-cuda"] = f"{name}.cuda.onnx"
        on_gpu = ir.load(path)
        lower_for_onnxruntime(on_gpu)
        ir.save(on_gpu, folder / lowered["onnxruntime-cuda"])
        emulate(on_cpu)
    lower_for_onnxruntime(on_cpu)
    ir.save(on_cpu, folder / lowered["onnxruntime"])
    return Component(
        graph=f"{name}.onnx",
        weights=weights if external else None,
        lowered=lowered,
        float32_only=float32_only,
        inputs=_specs(graph.inputs),
        outputs=_specs(graph.outputs),
    )


def computes_in_half(graph: ir.Graph) -> bool:
    """Whether any node other than a Cast gives float16."""
    return any(v.dtype == ir.DataType.FLOAT16 for node in graph if node.op_type != "Cast" for v in node.outputs)


def component_files(component: Component) -> list[str]:
    """All paths of a component, relative to the engine directory."""
    paths = [component.graph, *component.lowered.values()]
    return paths if component.weights is None else [*paths, component.weights]


def _forget_origin(graph: ir.Graph) -> None:
    """The exporter notes stack traces with paths of the machine at hand; they are nobody's business."""
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
        if value.shape is None or value.dtype not in _DTYPES:
            raise ExportError(f"tensor '{value.name}' has no known shape or dtype ({value.dtype})")
        shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
        specs[str(value.name)] = TensorSpec(_DTYPES[value.dtype], shape)
    return specs


def _store_half(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < _EXTERNAL_FROM_BYTES:
            continue
        half = half_weight(value, f"{name}.fp16")
        wide = ir.Value(name=f"{name}.fp32", shape=tensor.shape, type=ir.TensorType(ir.DataType.FLOAT))
        cast = ir.Node("", "Cast", [half], [ir.AttrInt64("to", int(ir.DataType.FLOAT))], outputs=[wide])
        ir.convenience.replace_all_uses_with(value, wide)
        graph.initializers.pop(name)
        graph.initializers.add(half)
        graph.insert_before(graph[0], cast)
