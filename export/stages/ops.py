"""The ops: one graph per variant of energy cross attention and size of head. They have no weights."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from ebca.engines.contract.manifest import Component, TensorSpec
from ebca.export.graph.dtypes import dtype_name
from ebca.export.graph.trace import Layer
from ebca.export.stages.context import Context, StageResult
from ebca.plugins.energy_attention import GUIDED_VARIANTS, VARIANTS
from ebca.plugins.energy_attention.onnx_model import op_model


def op_name(layer: Layer) -> str:
    return f"energy_attention_h{layer.heads}_d{layer.head_dim}"


def variants(layers: Sequence[Layer], guided: Collection[int] = ()) -> dict[str, dict[str, str]]:
    """Op name -> variant -> component name. guided: indices of the layers whose ops have the guided variants too."""
    with_guided = {op_name(layers[index]) for index in guided}
    return {
        name: {v: f"{name}.{v}" for v in (*VARIANTS, *(GUIDED_VARIANTS if name in with_guided else ()))}
        for name in dict.fromkeys(op_name(layer) for layer in layers)
    }


def update_graphs(context: Context, layers: Sequence[Layer]) -> Mapping[int, Path]:
    """Per layer, the file of its op's variant "update"."""
    names = variants(layers)
    return {index: context.folder / _path(names[op_name(la)]["update"]) for index, la in enumerate(layers)}


def export(context: Context, layers: Sequence[Layer], guided: Collection[int] = ()) -> StageResult:
    """Write every variant of every op that the layers need. It takes no time, so that it is never resumed.

    Args:
        guided: as in `variants`.
    """
    storage = "float16" if context.options.computes_half else "float32"
    components: dict[str, Component] = {}
    (context.folder / "ops").mkdir(exist_ok=True)
    sizes = {op_name(layer): layer for layer in layers}
    for op, its in variants(layers, guided).items():
        layer = sizes[op]
        for variant, name in its.items():
            model = op_model(layer.heads, layer.head_dim, variant, storage)
            onnx.save(model, str(context.folder / _path(name)))
            components[name] = Component(
                _path(name), _specs(model.graph.input), _specs(model.graph.output), float32_only=True
            )
    return StageResult(components)


def _path(name: str) -> str:
    return f"ops/{name}.onnx"


def _specs(values: Sequence[Any]) -> dict[str, TensorSpec]:
    specs = {}
    for value in values:
        tensor = value.type.tensor_type
        dtype = dtype_name(ir.DataType(tensor.elem_type))
        assert dtype is not None
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
        specs[value.name] = TensorSpec(dtype, shape)
    return specs
