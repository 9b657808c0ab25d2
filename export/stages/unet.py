"""The split UNet: one component per segment, and the manifest's schedule of segments and ops."""

from collections.abc import Mapping

import onnx_ir as ir

from ebca.engines.contract.manifest import Component, LayerSpec, Step, SubjectLayers, TensorSpec, UNetSpec
from ebca.export.graph.component import write_component
from ebca.export.graph.cuda.channels_last import is_image
from ebca.export.graph.dtypes import FLOAT, HALF, dtype_name
from ebca.export.graph.half import to_half
from ebca.export.graph.op_node import OUTPUTS
from ebca.export.graph.segments import OpCall, Segment, Split
from ebca.export.graph.split import split_unet
from ebca.export.graph.trace import Layer, context_width
from ebca.export.graph.traced_unet import TracedUNet
from ebca.export.parity import SegmentParity
from ebca.export.stages import full_unet, ops
from ebca.export.stages.context import Context, StageResult, parity_limit
from ebca.export.stages.subject_layers import subject_layers
from ebca.export.stages.unet_inputs import UNetInputs


def export(context: Context, inputs: UNetInputs) -> StageResult:
    """Split the UNet; write its ops and segments, and run each for comparison.

    Segments of an interrupted export are not written again, but run again: later ones are compared at what they return.

    Raises:
        ExportError: an error against PyTorch is above its limit, or a weight does not fit float16.
    """
    cut, _ = split_unet(inputs.traced)
    subjects = subject_layers(context, inputs.traced, cut)
    result = ops.export(context, inputs.traced.layers, subjects.biased if subjects else ())
    updates = ops.update_graphs(context, inputs.traced.layers)
    parity = SegmentParity(inputs.reference, parity_limit(computes_half=context.options.computes_half))
    dtypes = dict.fromkeys(inputs.traced.inputs, FLOAT)
    images = _images(cut, inputs.traced)
    for index, segment in enumerate(cut.segments):
        size = segment.weight_bytes
        context.report(f"segment {index + 1} of {len(cut.segments)}, {size / 1e6:.0f} MB", result.weight_bytes)
        if context.options.computes_half:
            _to_half(segment, dtypes)
        found = context.workspace.get(segment.name)
        component = found[0] if found else _write(context, segment, images)
        parity.run(segment, component, context.folder, updates)
        if not found:
            context.workspace.put(segment.name, component, {})
        stored = size // (2 if context.options.stores_half else 1)
        result = result.joined(StageResult({segment.name: component}, weight_bytes=stored))
    record = {"segments": parity.segments, "unet": parity.chain(), "sizes": inputs.reference.sizes}
    return result.joined(
        StageResult(sections={"unet": _spec(context, inputs.traced, cut, dtypes, subjects)}, parity=record)
    )


def _images(cut: Split, traced: TracedUNet) -> frozenset[str]:
    """The images between segments."""
    edges = {*traced.inputs, *OUTPUTS, *traced.controls}
    return frozenset(n for n, b in cut.tensors.items() if is_image(b.shape)) - edges


def _write(context: Context, segment: Segment, images: frozenset[str]) -> Component:
    return write_component(
        segment.graph,
        context.folder,
        f"unet/{segment.name}",
        half=context.options.stores_half and not context.options.computes_half,
        float32_only=segment.float32_only,
        images=images,
    )


def _to_half(segment: Segment, dtypes: dict[str, ir.DataType]) -> None:
    """Make a segment compute in float16, and add the dtypes of the tensors that it and its ops write to `dtypes`.

    An op returns its attention output in float16. Its step g stays float32, and so does g Wk: see
    `ebca.export.graph.half`.
    """
    steps = [name for name in segment.inputs if name.endswith(".g")]
    to_half(segment.graph, dtypes, keep=steps, float32_outputs=OUTPUTS)
    dtypes |= {str(value.name): value.dtype for value in segment.graph.outputs if value.dtype is not None}
    for call in segment.ops:
        dtypes |= dict(zip(call.outputs, (HALF, FLOAT), strict=True))


def _spec(
    context: Context,
    traced: TracedUNet,
    cut: Split,
    dtypes: Mapping[str, ir.DataType],
    subjects: SubjectLayers | None,
) -> UNetSpec:
    config, options = context.checkpoint.unet.config, context.options
    calls = _calls(cut)
    return UNetSpec(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        context_dim=context_width(context.checkpoint.unet),
        sample_size=traced.sample_size,
        inputs=traced.inputs,
        outputs=OUTPUTS,
        tensors={n: _tensor(dtypes.get(n, FLOAT), b.shape) for n, b in cut.tensors.items()},
        layers=tuple(_layer(layer, calls[index]) for index, layer in enumerate(traced.layers)),
        ops=ops.variants(traced.layers, subjects.biased if subjects else ()),
        steps=_schedule(cut),
        max_contexts=options.plans.max_contexts if options.plans else None,
        channels_last={"onnxruntime-cuda": tuple(sorted(_images(cut, traced)))} if options.computes_half else {},
        full_unet=full_unet.NAME if options.with_full_unet else None,
        full_unet_with_updates=full_unet.NAME_WITH_UPDATES if options.with_full_unet_updates else None,
        subject_layers=subjects,
        controls=tuple(traced.controls),
    )


def _calls(cut: Split) -> dict[int, OpCall]:
    return {call.layer: call for segment in cut.segments for call in segment.ops}


def _tensor(dtype: ir.DataType, shape: "tuple[int | str, ...]") -> TensorSpec:
    name = dtype_name(dtype)
    assert name is not None
    return TensorSpec(name, shape)


def _layer(layer: Layer, call: OpCall) -> LayerSpec:
    return LayerSpec(layer.name, ops.op_name(layer), layer.heads, layer.head_dim, call.height, call.width)


def _schedule(cut: Split) -> tuple[Step, ...]:
    """Every segment, each followed by its ops."""
    steps: list[Step] = []
    for segment in cut.segments:
        steps.append(Step(segment=segment.name, inputs=segment.inputs, outputs=segment.outputs))
        steps += [Step(layer=call.layer, inputs=call.inputs, outputs=call.outputs) for call in segment.ops]
    return tuple(steps)
