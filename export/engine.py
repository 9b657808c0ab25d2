"""Checkpoint to engine directory: the order of work."""

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from diffusers import UNet2DConditionModel
from torch import nn

import ebca
from ebca.engines.backends.tensorrt_library import RTX
from ebca.engines.contract.dims import Dim
from ebca.engines.contract.manifest import (
    COMPUTES,
    GUIDANCE_SCALE,
    VERSION,
    Component,
    LayerSpec,
    Manifest,
    Step,
    TensorSpec,
    TextEncoderSpec,
    TokenizerSpec,
    UNetSpec,
    VaeSpec,
)
from ebca.engines.contract.plans import LibraryPlans
from ebca.errors import ExportError, ParameterError
from ebca.export import encoders, schedulers
from ebca.export import plans as plan_building
from ebca.export.checkpoint import Checkpoint, check_unet_supported, load_checkpoint
from ebca.export.graphs import write_component
from ebca.export.half import FLOAT, HALF, to_half
from ebca.export.parity import HALF_LIMIT, LIMIT, UNetParity, check, module_parity
from ebca.export.plans import PlanOptions
from ebca.export.split import Segment, Split, split
from ebca.export.trace import OPSET, OUTPUTS, Layer, layers_of
from ebca.export.uncut import Uncut
from ebca.export.vanilla import vanilla_graph
from ebca.export.whole import steps_of, whole_graph
from ebca.export.workspace import Workspace, check_output, check_room
from ebca.plugins.energy_attention import VARIANTS
from ebca.plugins.energy_attention.onnx_model import op_model

PRECISIONS = ("fp32", "fp16")

_ONNX_DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}
_DTYPES = {FLOAT: "float32", HALF: "float16"}

_VANILLA = "vanilla"
_WHOLE = "whole"

# Graphs, tables, and what a file system adds.
_OVERHEAD_BYTES = 100 << 20


@dataclass(frozen=True)
class ExportEvent:
    """One step of an export: `done` of `total` bytes are written; `text` says what comes next."""

    text: str
    done: int
    total: int


OnProgress = Callable[[ExportEvent], None]


@dataclass
class _Export:
    """The parts of one export while it runs."""

    checkpoint: Checkpoint
    workspace: Workspace
    half: bool
    compute: str
    vae_float32: bool
    on_progress: OnProgress
    components: dict[str, Component] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    written: int = 0
    total: int = 0

    @property
    def folder(self) -> Path:
        return self.workspace.folder

    @property
    def computes_half(self) -> bool:
        return self.compute == "fp16"

    @property
    def limit(self) -> float:
        return HALF_LIMIT if self.computes_half else LIMIT

    def say(self, text: str) -> None:
        self.on_progress(ExportEvent(text, self.written, self.total))


def export_checkpoint(
    checkpoint: Checkpoint,
    output_dir: str | Path,
    *,
    precision: str = "fp32",
    compute: str = "fp32",
    vae_float32: bool = False,
    plans: PlanOptions | None = None,
    with_vanilla: bool = False,
    one_piece: bool = False,
    scheduler_steps: Sequence[int] = (),
    guidance_scale: float = GUIDANCE_SCALE,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write an engine directory.

    Args:
        checkpoint: what `ebca.export.checkpoint.load_checkpoint` gives. At precision fp16 its weights are rounded in
            place, so that parity compares like with like.
        output_dir: the directory to make; an interrupted export of the same model goes on where it stopped.
        precision: "fp32", or "fp16" to store weights as float16.
        compute: "fp32", or "fp16" for graphs that compute in float16, for GPUs; needs precision fp16.
        vae_float32: let the VAE compute in float32 all the same, for those that overflow float16.
        plans: build engines ahead of time too; needs compute fp16.
        with_vanilla: hold the uncut UNet too, for steps whose gammas are all zero; as large as the rest of the UNet.
        one_piece: hold the uncut UNet with its updates too, whose ops TensorRT runs as a plugin; as large again.
        scheduler_steps: step counts to tabulate beside 1 to 50 and 60, 70, 75, 80, 90, 100.
        guidance_scale: what this model's pictures are made with unless the caller says otherwise.
        overwrite: replace an engine that is there.
        on_progress: called before each piece of work.

    Returns:
        The engine directory.

    Raises:
        ExportError, ModelError, ParameterError: see `ebca.errors`. Nothing is left that could be taken for an engine.
    """
    output = Path(output_dir)
    if precision not in PRECISIONS:
        raise ParameterError(f"precision '{precision}' is unknown", f"choose one of {', '.join(PRECISIONS)}")
    if compute not in COMPUTES:
        raise ParameterError(f"compute '{compute}' is unknown", f"choose one of {', '.join(COMPUTES)}")
    if compute == "fp16" and precision != "fp16":
        raise ParameterError(f"compute is fp16 and precision is {precision}", "give precision fp16")
    if plans is not None and compute != "fp16":
        raise ParameterError("plans are built from graphs that compute in float16", "give compute fp16")
    if one_piece and plans is not None and plans.library == RTX:
        raise ParameterError(f"{RTX} takes no plugins, and one_piece needs one", "build for tensorrt, or leave it out")
    if not math.isfinite(guidance_scale):
        raise ParameterError(f"guidance_scale is {guidance_scale}", "give a finite number")
    check_output(output, overwrite=overwrite)
    check_unet_supported(checkpoint.unet.config)
    modules = [m for m in (checkpoint.unet, checkpoint.text_encoder, checkpoint.vae) if m is not None]
    half = precision == "fp16"
    # A plan holds the weights once more for each shape.
    copies = 1 + (len(plans.shapes) if plans else 0)
    width = 2 if half else 4
    total = copies * sum(p.numel() * width for m in modules for p in m.parameters())
    total += copies * (with_vanilla + one_piece) * sum(p.numel() * width for p in checkpoint.unet.parameters())
    check_room(output, total + _OVERHEAD_BYTES)
    report = on_progress or (lambda event: None)
    report(ExportEvent("reading weights", 0, total))
    for module in modules:
        _check_weights(module, half=half)
    steps = sorted({*schedulers.DEFAULT_STEPS, *scheduler_steps})
    options = {
        "precision": precision,
        "compute": compute,
        "vae": vae_float32,
        "vanilla": with_vanilla,
        "whole": one_piece,
        "steps": steps,
    }
    key = _key(checkpoint, modules, options)
    workspace = Workspace(output, key, overwrite=overwrite)
    try:
        export = _Export(checkpoint, workspace, half, compute, vae_float32, report, total=total)
        unet = _export_unet(export, with_vanilla=with_vanilla, one_piece=one_piece)
        text_encoder = _export_text_encoder(export)
        vae = _export_vae(export)
        tokenizer = _export_tokenizer(export)
        export.say("scheduler tables")
        config = checkpoint.scheduler_config or schedulers.DEFAULT_CONFIG
        tables = schedulers.write_tables(schedulers.build_tables(config, steps), export.folder)
        built = _build_plans(export, plans, unet, text_encoder, vae) if plans else {}
        if plans:
            unet = replace(unet, max_contexts=plans.max_contexts)
        manifest = Manifest(
            model={
                "name": checkpoint.name,
                "kind": _kind(checkpoint),
                "source": checkpoint.source,
                "guidance_scale": float(guidance_scale),
            },
            precision=precision,
            components=export.components,
            unet=unet,
            schedulers=tables,
            files=_records(export, tables, tokenizer, built),
            text_encoder=text_encoder,
            vae=vae,
            tokenizer=tokenizer,
            parity=export.parity,
            created_by=_versions(),
            compute=compute,
            plans=built,
        )
        export.written = total
        export.say("done")
        return workspace.finish(manifest)
    except OSError as error:
        raise ExportError(
            f"cannot write to '{workspace.folder}': {error.strerror or error}",
            "finished parts are kept, run the same command again to go on",
        ) from None
    finally:
        if workspace.folder.is_dir():
            workspace.release()


def export_unet(
    unet_or_folder: UNet2DConditionModel | str | Path, output_dir: str | Path, *, precision: str = "fp32"
) -> Path:
    """Export a UNet alone: a diffusers object, or a folder in diffusers format (a UNet's, or a pipeline's).

    The result serves `ebca.Denoiser` and sessions that are given embeddings and latents. Raises as
    `export_checkpoint`.
    """
    if isinstance(unet_or_folder, UNet2DConditionModel):
        name = str(unet_or_folder.config.get("_name_or_path") or "unet")
        # Rounding to float16 happens in place and must not reach the caller's model.
        unet = _copy(unet_or_folder) if precision == "fp16" else unet_or_folder.float().eval()
        checkpoint = Checkpoint(name=Path(name).name, unet=unet, source={"kind": "object", "id": Path(name).name})
    else:
        loaded = load_checkpoint(str(unet_or_folder))
        checkpoint = Checkpoint(
            name=loaded.name, unet=loaded.unet, scheduler_config=loaded.scheduler_config, source=loaded.source
        )
    return export_checkpoint(checkpoint, output_dir, precision=precision)


def split_unet(uncut: Uncut) -> tuple[Split, dict[str, int]]:
    """Cut; nothing is written. Returns the split and the sizes at which bytes were compared."""
    side = uncut.sample_size
    sizes = {"batch": 2, "contexts": 1, "tokens": 77, "height": side, "width": side}
    return split(uncut.copy(), uncut.symbols, sizes, OPSET), sizes


def _export_unet(export: _Export, *, with_vanilla: bool, one_piece: bool) -> UNetSpec:
    unet = export.checkpoint.unet
    layers = layers_of(unet)
    export.say(f"tracing the UNet ({len(layers)} cross-attention layers)")
    uncut = Uncut.of(unet)
    cut, _ = split_unet(uncut)
    ops = _export_ops(export, layers)
    export.say("running the UNet in PyTorch for comparison")
    parity = UNetParity.of(unet, export.limit)
    dtypes = {"sample": FLOAT, "timestep": FLOAT, "contexts": FLOAT}
    paths = {i: export.folder / export.components[ops[_op_name(la)]["update"]].graph for i, la in enumerate(layers)}
    for index, segment in enumerate(cut.segments):
        size = segment.weight_bytes
        export.say(f"segment {index + 1} of {len(cut.segments)}, {size / 1e6:.0f} MB")
        if export.computes_half:
            _segment_to_half(segment, dtypes)
        found = export.workspace.get(segment.name)
        component = found[0] if found else write_component(
            segment.graph,
            export.folder,
            f"unet/{segment.name}",
            half=export.half and not export.computes_half,
            float32_only=segment.float32_only,
        )  # fmt: skip
        parity.segment(segment, component, export.folder, paths)
        if not found:
            export.workspace.put(segment.name, component, {})
        export.components[segment.name] = component
        export.written += size // (2 if export.half else 1)
    export.parity["segments"] = parity.segments
    export.parity["unet"] = parity.whole()
    export.parity["sizes"] = parity.sizes
    spec = _unet_spec(unet, layers, cut, ops, dtypes)
    if with_vanilla:
        measure = partial(parity.vanilla, unet)
        _export_uncut(export, _VANILLA, "the uncut UNet", lambda: vanilla_graph(uncut), measure)
        spec = replace(spec, full_unet=_VANILLA)
    if one_piece:
        _export_uncut(export, _WHOLE, "the uncut UNet with updates", lambda: whole_graph(uncut), parity.one_piece)
        spec = replace(spec, full_unet_with_updates=_WHOLE)
    return spec


def _export_uncut(
    export: _Export,
    name: str,
    what: str,
    make: Callable[[], ir.Graph],
    measure: Callable[[Component, Path], float],
) -> None:
    """Write the UNet in one piece as component `name`: the graph that `make` gives, its error by `measure`."""
    size = sum(p.numel() * (2 if export.half else 4) for p in export.checkpoint.unet.parameters())
    export.say(f"{what}, {size / 1e6:.0f} MB")
    found = export.workspace.get(name)
    if found:
        component, error = found[0], check(what, found[1]["parity"], export.limit)
    else:
        graph = make()
        if export.computes_half:
            to_half(graph, keep=steps_of(graph), float32_outputs=OUTPUTS)
        half = export.half and not export.computes_half
        component = write_component(graph, export.folder, f"unet/{name}", half=half)
        error = measure(component, export.folder)
        export.workspace.put(name, component, {"parity": error})
    export.components[name] = component
    export.parity[name] = error
    export.written += size


def _segment_to_half(segment: Segment, dtypes: dict[str, ir.DataType]) -> None:
    """Make a segment compute in float16; `dtypes` of the tensors between segments goes in and grows.

    An op gives its attention output in float16. Its step g stays float32, and so does g Wk: see `ebca.export.half`.
    """
    steps = [name for name in segment.inputs if name.endswith(".g")]
    to_half(segment.graph, dtypes, keep=steps, float32_outputs=OUTPUTS)
    dtypes |= {str(value.name): value.dtype for value in segment.graph.outputs if value.dtype is not None}
    for call in segment.ops:
        dtypes |= dict(zip(call.outputs, (HALF, FLOAT), strict=True))


def _op_name(layer: Layer) -> str:
    return f"energy_attention_h{layer.heads}_d{layer.head_dim}"


def _export_ops(export: _Export, layers: Sequence[Layer]) -> dict[str, dict[str, str]]:
    ops: dict[str, dict[str, str]] = {}
    for layer in layers:
        name = _op_name(layer)
        if name in ops:
            continue
        ops[name] = {}
        for variant in VARIANTS:
            component = f"{name}.{variant}"
            path = f"ops/{component}.onnx"
            model = op_model(layer.heads, layer.head_dim, variant, "float16" if export.computes_half else "float32")
            (export.folder / "ops").mkdir(exist_ok=True)
            onnx.save(model, str(export.folder / path))
            export.components[component] = Component(
                path, _proto_specs(model.graph.input), _proto_specs(model.graph.output), float32_only=True
            )
            ops[name][variant] = component
    return ops


def _proto_specs(values: Sequence[Any]) -> dict[str, TensorSpec]:
    return {
        v.name: TensorSpec(
            _ONNX_DTYPES[v.type.tensor_type.elem_type],
            tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in v.type.tensor_type.shape.dim),
        )
        for v in values
    }


def _unet_spec(
    unet: UNet2DConditionModel,
    layers: Sequence[Layer],
    cut: Split,
    ops: Mapping[str, Mapping[str, str]],
    dtypes: Mapping[str, ir.DataType],
) -> UNetSpec:
    plan: list[Step] = []
    positions: dict[int, Dim] = {}
    for segment in cut.segments:
        plan.append(Step(segment=segment.name, inputs=segment.inputs, outputs=segment.outputs))
        for call in segment.ops:
            plan.append(Step(layer=call.layer, inputs=call.inputs, outputs=call.outputs))
            positions[call.layer] = cut.tensors[call.inputs[0]].shape[1]
    config = unet.config
    specs = []
    for index, layer in enumerate(layers):
        height, width = str(positions[index]).split("*")
        specs.append(LayerSpec(layer.name, _op_name(layer), layer.heads, layer.head_dim, height, width))
    return UNetSpec(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        context_dim=config.cross_attention_dim,
        sample_size=int(config.sample_size),
        inputs=("sample", "timestep", "contexts"),
        outputs=("noise", "contexts_out"),
        tensors={n: TensorSpec(_DTYPES[dtypes.get(n, FLOAT)], b.shape) for n, b in cut.tensors.items()},
        layers=tuple(specs),
        ops=ops,
        steps=tuple(plan),
    )


def _export_text_encoder(export: _Export) -> TextEncoderSpec | None:
    model = export.checkpoint.text_encoder
    if model is None:
        return None
    length = int(model.config.max_position_embeddings)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, length))
    # Its result steers every step and its time is a fraction of one: no engine lowers its precision further.
    _export_module(
        export,
        "text_encoder",
        encoders.TextEncoder(model),
        lambda: encoders.text_encoder_graph(model, length),
        ids.astype(np.int64),
        list(model.parameters()),
        half=export.computes_half,
        float32_only=True,
    )
    return TextEncoderSpec("text_encoder", length, int(model.config.hidden_size))


def _export_vae(export: _Export) -> VaeSpec | None:
    vae = export.checkpoint.vae
    if vae is None:
        return None
    factor, config = encoders.downscale(vae), vae.config
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, config.latent_channels, 16, 12), np.float32)
    if export.computes_half:
        # Where float16 overflows, it does so at the size that unscaled latents have.
        latents /= np.float32(config.scaling_factor)
    half = export.computes_half and not export.vae_float32
    image = rng.uniform(-1, 1, (1, config.in_channels, 16 * factor, 12 * factor)).astype(np.float32)
    decoder, encoder = encoders.VaeDecoder(vae), encoders.VaeEncoder(vae)
    parts = {
        side: [p for n, p in vae.named_parameters() if n.startswith((f"{side}.", quant))]
        for side, quant in (("decoder", "post_quant_conv."), ("encoder", "quant_conv."))
    }
    graphs = encoders.vae_decoder_graph, encoders.vae_encoder_graph
    _export_module(export, "vae_decoder", decoder, lambda: graphs[0](vae), latents, parts["decoder"], half=half)
    _export_module(export, "vae_encoder", encoder, lambda: graphs[1](vae), image, parts["encoder"], half=half)
    return VaeSpec(
        "vae_decoder",
        "vae_encoder",
        latent_channels=int(config.latent_channels),
        scaling_factor=float(config.scaling_factor),
        shift_factor=float(config.get("shift_factor") or 0.0),
        downscale=factor,
    )


def _export_module(
    export: _Export,
    name: str,
    module: nn.Module,
    graph: Callable[[], Any],
    example: np.ndarray,
    parameters: Sequence[nn.Parameter],
    *,
    half: bool,
    float32_only: bool = False,
) -> None:
    """`half`: the graph computes in float16."""
    limit = HALF_LIMIT if half else LIMIT
    size = sum(p.numel() * (2 if export.half else 4) for p in parameters)
    found = export.workspace.get(name)
    export.say(f"{name.replace('_', ' ')}, {size / 1e6:.0f} MB")
    if found is None:
        made = graph()
        if half:
            to_half(made, float32_outputs=[str(value.name) for value in made.outputs])
        component = write_component(made, export.folder, name, half=export.half and not half, float32_only=float32_only)
        error = module_parity(name, module, component, export.folder, example, limit)
        export.workspace.put(name, component, {"parity": error})
    else:
        component, error = found[0], check(name, found[1]["parity"], limit)
    export.components[name] = component
    export.parity[name] = error
    export.written += size


def _build_plans(
    export: _Export,
    options: PlanOptions,
    unet: UNetSpec,
    text_encoder: TextEncoderSpec | None,
    vae: VaeSpec | None,
) -> dict[str, LibraryPlans]:
    work = plan_building.jobs(options, export.components, unet, text_encoder, vae)

    def on_progress(text: str, done: int) -> None:
        export.on_progress(ExportEvent(text, export.written + done, export.total))

    built = plan_building.build(work, options, export.components, text_encoder, export.workspace, on_progress)
    return {options.library: built}


def _export_tokenizer(export: _Export) -> TokenizerSpec | None:
    checkpoint = export.checkpoint
    if checkpoint.tokenizer_json is None:
        return None
    (export.folder / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
    return TokenizerSpec("tokenizer.json", checkpoint.tokenizer_info)


def _records(
    export: _Export, tables: Mapping[str, Any], tokenizer: TokenizerSpec | None, built: Mapping[str, LibraryPlans]
) -> dict[str, Any]:
    paths = [f for c in export.components.values() for f in (c.graph, c.weights, *c.lowered.values()) if f]
    paths += [plan.file for library in built.values() for plans in library.components.values() for plan in plans]
    paths += [tables["alphas_cumprod"], *(t["file"] for t in tables["tables"].values())]
    if tokenizer is not None:
        paths.append(tokenizer.file)
    return {path: export.workspace.record(path) for path in sorted(set(paths))}


def _kind(checkpoint: Checkpoint) -> str:
    if checkpoint.text_encoder is None or checkpoint.vae is None or checkpoint.tokenizer_json is None:
        return "unet"
    return "inpainting" if checkpoint.unet.config.in_channels == 9 else "text-to-image"


def _check_weights(module: nn.Module, *, half: bool) -> None:
    limit = torch.finfo(torch.float16).max
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            largest = float(parameter.abs().max()) if parameter.numel() else 0.0
            if not np.isfinite(largest):
                raise ExportError(f"weight '{name}' of the checkpoint is not finite", "the checkpoint is damaged")
            if half and largest > limit:
                raise ExportError(
                    f"weight '{name}' ({largest:.1e}) does not fit float16", "export with --precision fp32"
                )
            if half:
                parameter.copy_(parameter.half())


def _key(checkpoint: Checkpoint, modules: Sequence[nn.Module], options: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            crc = zlib.crc32(tensor.detach().contiguous().numpy().reshape(-1).view(np.uint8))
            digest.update(f"{name} {tuple(tensor.shape)} {crc}\n".encode())
    facts = {
        "config": dict(checkpoint.unet.config),
        "tokenizer": checkpoint.tokenizer_json,
        "scheduler": checkpoint.scheduler_config,
        "options": dict(options),
        "versions": _versions(),
        "manifest": VERSION,
    }
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _copy(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    twin = UNet2DConditionModel.from_config(unet.config).eval().requires_grad_(False)
    twin.load_state_dict(unet.state_dict())
    return twin


def _versions() -> dict[str, str]:
    return {
        "ebca": ebca.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
