"""`manifest.json`: everything a host in any language must know to run an engine directory.

Version 1. Paths are relative to the directory, with `/`. Tensor shapes: see `ebca.engines.contract.dims`.

    format, version      "ebca-engine", 1
    created_by           versions of the software that wrote it
    model                name, kind ("text-to-image", "inpainting", "unet"), source, guidance_scale (the default)
    precision            "fp32", or "fp16" (weights stored as float16)
    compute              "fp32" (the default; stored float16 is widened during preparation), or "fp16"
    components           name -> graph, lowered graphs per backend, weights file, inputs, outputs
    unet                 channels, sizes, inputs, outputs, tensors, layers, steps ("plan")
    text_encoder, vae, tokenizer    null in a UNet-only directory
    schedulers           coefficient tables, see `ebca.runtime.sampling.tables`
    parity               errors measured against PyTorch at export
    plans                per library: TensorRT plans built ahead of time, see `ebca.engines.contract.plans`
    files                path -> size, sha256
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ebca.engines.contract import dims, plans
from ebca.engines.contract.dims import Dim
from ebca.engines.contract.plans import LibraryPlans
from ebca.engines.contract.tensors import TensorSpec, tensors_from_json
from ebca.errors import EngineError

FORMAT = "ebca-engine"
VERSION = 1
FILE_NAME = "manifest.json"
DTYPES = ("float32", "float16", "int64")
COMPUTES = ("fp32", "fp16")
_JSON_NAMES = {"steps": "plan", "full_unet": "vanilla", "full_unet_with_updates": "whole"}
GUIDANCE_SCALE = 7.5
"""The default of a manifest without one: the usual value for Stable Diffusion."""


@dataclass(frozen=True)
class Component:
    """One graph that a backend runs: a segment, a variant of the op, the text encoder, or one half of the VAE.

    `graph` holds standard ONNX operators. `lowered` maps a backend to the same graph in operators that it runs faster.
    All of them read the same `weights` file. `float32_only` components never run at a lower precision. `scratch` is for
    estimates of memory: each entry holds tensors that exist at the same time inside the graph, beside its inputs and
    outputs, in whatever library runs it. The largest entry is what a call needs at least.
    """

    graph: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    weights: str | None = None
    lowered: Mapping[str, str] = field(default_factory=dict)
    float32_only: bool = False
    scratch: tuple[tuple[TensorSpec, ...], ...] = ()

    def graph_for(self, backend: str) -> str:
        return self.lowered.get(backend, self.graph)

    def files(self, backend: str) -> tuple[str, ...]:
        graph = self.graph_for(backend)
        return (graph,) if self.weights is None else (graph, self.weights)


@dataclass(frozen=True)
class LayerSpec:
    """One cross-attention layer: its name in the checkpoint, its op, and the size of its positions."""

    name: str
    op: str
    heads: int
    head_dim: int
    height: Dim
    width: Dim

    def size(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """(height, width) of the positions, see `ebca.engines.contract.dims.evaluate`."""
        return dims.evaluate(self.height, sizes), dims.evaluate(self.width, sizes)


@dataclass(frozen=True)
class Step:
    """One step of the UNet. A segment binds tensors by their own names; an op maps q, k, v to out, g."""

    segment: str | None = None
    layer: int | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class UNetSpec:
    """The split UNet.

    `ops` maps the name of an op to the component of each of its variants. `max_contexts` bounds the number of main and
    editing prompts together (None: unlimited). `full_unet` is the component of the unsplit UNet: it has the same inputs
    and outputs, reads only the first context, and returns the contexts unchanged (None: not exported).
    `full_unet_with_updates` is the unsplit UNet with the op's variant "update" inside; it also takes the controls of
    that variant. `channels_last` maps a backend whose lowered graphs differ in it to the images between segments that
    are [B,h,w,C] there; `tensors` always has [B,C,h,w]. In the JSON, `steps` is "plan", `full_unet` is "vanilla", and
    `full_unet_with_updates` is "whole".
    """

    in_channels: int
    out_channels: int
    context_dim: int
    sample_size: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, TensorSpec]
    layers: tuple[LayerSpec, ...]
    ops: Mapping[str, Mapping[str, str]]
    steps: tuple[Step, ...]
    max_contexts: int | None = None
    full_unet: str | None = None
    full_unet_with_updates: str | None = None
    channels_last: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def segments(self) -> list[str]:
        return [step.segment for step in self.steps if step.segment is not None]

    @property
    def time_step(self) -> Step | None:
        """The first step, if it depends on the timestep alone, row by row."""
        first = self.steps[0] if self.steps else None
        if first is None or first.segment is None or first.inputs != ("timestep",):
            return None
        return first if all(self.tensors[name].shape[:1] == ("batch",) for name in first.outputs) else None


@dataclass(frozen=True)
class VaeSpec:
    """Latents are `scaling_factor * (encoded - shift_factor)`; the graphs take and return unscaled latents."""

    decoder: str
    encoder: str
    latent_channels: int
    scaling_factor: float
    shift_factor: float
    downscale: int


@dataclass(frozen=True)
class TextEncoderSpec:
    component: str
    max_length: int
    hidden_size: int


@dataclass(frozen=True)
class TokenizerSpec:
    file: str
    info: Mapping[str, Any]


@dataclass(frozen=True)
class FileRecord:
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`, see the module docstring."""

    model: Mapping[str, Any]
    precision: str
    components: Mapping[str, Component]
    unet: UNetSpec
    schedulers: Mapping[str, Any]
    files: Mapping[str, FileRecord]
    text_encoder: TextEncoderSpec | None = None
    vae: VaeSpec | None = None
    tokenizer: TokenizerSpec | None = None
    parity: Mapping[str, Any] = field(default_factory=dict)
    created_by: Mapping[str, str] = field(default_factory=dict)
    compute: str = "fp32"
    plans: Mapping[str, LibraryPlans] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return str(self.model["kind"])

    @property
    def guidance_scale(self) -> float:
        """The default guidance scale of this model."""
        return float(self.model.get("guidance_scale", GUIDANCE_SCALE))

    def to_json(self) -> str:
        data = asdict(self)
        data["unet"] = {_JSON_NAMES.get(name, name): value for name, value in data["unet"].items()}
        return json.dumps({"format": FORMAT, "version": VERSION, **data}, indent=1) + "\n"


def read(directory: Path) -> Manifest:
    """Read and validate `directory/manifest.json`.

    Raises:
        EngineError: not an engine directory, a newer version, a broken or inconsistent manifest, or a path that
            leaves the directory.
    """
    path = directory / FILE_NAME
    if not directory.is_dir():
        raise EngineError(f"engine directory '{directory}' does not exist", "make one with `ebca-export --output-dir`")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EngineError(
            f"'{directory}' has no {FILE_NAME}: not an engine directory, or its export did not finish",
            "run `ebca-export` again to finish it",
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EngineError(f"'{path}' cannot be read: {error}", "export the engine again") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise EngineError(f"'{path}' is not an ebca manifest (no format '{FORMAT}')")
    version = data.get("version")
    if not isinstance(version, int) or version < 1 or version > VERSION:
        raise EngineError(
            f"'{path}' has manifest version {version!r}, this ebca reads up to {VERSION}",
            "upgrade ebca (`pip install -U ebca`) or export the engine again",
        )
    try:
        manifest = _parse(data)
        _validate(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"'{path}' is broken ({type(error).__name__}: {error})", "export the engine again") from None
    return manifest


def component_from_json(data: Mapping[str, Any]) -> Component:
    """A component from its entry in `manifest.json`."""
    return Component(
        graph=data["graph"],
        inputs=tensors_from_json(data["inputs"]),
        outputs=tensors_from_json(data["outputs"]),
        weights=data["weights"],
        lowered=dict(data["lowered"]),
        float32_only=bool(data["float32_only"]),
        scratch=tuple(
            tuple(TensorSpec(tensor["dtype"], tuple(tensor["shape"])) for tensor in node)
            for node in data.get("scratch", ())
        ),
    )


def _parse(data: Mapping[str, Any]) -> Manifest:
    unet = data["unet"]
    return Manifest(
        model=data["model"],
        precision=data["precision"],
        components={name: component_from_json(c) for name, c in data["components"].items()},
        unet=UNetSpec(
            **{k: unet[k] for k in ("in_channels", "out_channels", "context_dim", "sample_size")},
            inputs=tuple(unet["inputs"]),
            outputs=tuple(unet["outputs"]),
            tensors=tensors_from_json(unet["tensors"]),
            layers=tuple(LayerSpec(**layer) for layer in unet["layers"]),
            ops={name: dict(variants) for name, variants in unet["ops"].items()},
            steps=tuple(Step(s["segment"], s["layer"], tuple(s["inputs"]), tuple(s["outputs"])) for s in unet["plan"]),
            max_contexts=unet.get("max_contexts"),
            full_unet=unet.get("vanilla"),
            full_unet_with_updates=unet.get("whole"),
            channels_last={name: tuple(names) for name, names in unet.get("channels_last", {}).items()},
        ),
        schedulers=data["schedulers"],
        files={path: FileRecord(**record) for path, record in data["files"].items()},
        text_encoder=TextEncoderSpec(**data["text_encoder"]) if data["text_encoder"] else None,
        vae=VaeSpec(**data["vae"]) if data["vae"] else None,
        tokenizer=TokenizerSpec(**data["tokenizer"]) if data["tokenizer"] else None,
        parity=data.get("parity", {}),
        created_by=data.get("created_by", {}),
        compute=data.get("compute", "fp32"),
        plans={name: plans.from_json(entry) for name, entry in data.get("plans", {}).items()},
    )


def _validate(manifest: Manifest) -> None:
    if not math.isfinite(manifest.guidance_scale):
        raise ValueError(f"guidance_scale is {manifest.guidance_scale}")
    if manifest.compute not in COMPUTES:
        raise ValueError(f"compute is {manifest.compute!r}")
    for path in manifest.files:
        _check_path(path)
    for name, component in manifest.components.items():
        for file in (component.graph, component.weights, *component.lowered.values()):
            if file is not None and file not in manifest.files:
                raise ValueError(f"component '{name}' needs '{file}', which is not among the files")
        for tensor in (*component.inputs.values(), *component.outputs.values()):
            if tensor.dtype not in DTYPES:
                raise ValueError(f"component '{name}' has a tensor of dtype '{tensor.dtype}'")
    if manifest.tokenizer and manifest.tokenizer.file not in manifest.files:
        raise ValueError(f"the tokenizer file '{manifest.tokenizer.file}' is not among the files")
    unet = manifest.unet
    if unet.max_contexts is not None and (type(unet.max_contexts) is not int or unet.max_contexts < 1):
        raise ValueError(f"unet.max_contexts is {unet.max_contexts!r}")
    for tensor_name, tensor in unet.tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"tensor '{tensor_name}' of the UNet has dtype '{tensor.dtype}'")
    for names in unet.channels_last.values():
        for tensor_name in names:
            if tensor_name in (*unet.inputs, *unet.outputs) or len(unet.tensors[tensor_name].shape) != 4:
                raise ValueError(f"'{tensor_name}' of channels_last is not an image between segments")
    controls = {n for op in unet.ops.values() for n in manifest.components[op["update"]].inputs} - {"q", "k", "v"}
    for full, more in ((unet.full_unet, set()), (unet.full_unet_with_updates, controls)):
        if full is not None:
            component = manifest.components[full]
            if set(component.inputs) != {*unet.inputs, *more} or set(component.outputs) != set(unet.outputs):
                raise ValueError(f"the full UNet '{full}' has other inputs and outputs than the steps")
    written = set(unet.inputs)
    for step in unet.steps:
        for tensor_name in (*step.inputs, *step.outputs):
            if tensor_name not in unet.tensors:
                raise ValueError(f"a step uses the unknown tensor '{tensor_name}'")
        if missing := set(step.inputs) - written:
            raise ValueError(f"a step reads {sorted(missing)} before they are written")
        written |= set(step.outputs)
        if step.segment is not None:
            component = manifest.components[step.segment]
            if set(component.inputs) != set(step.inputs) or set(component.outputs) != set(step.outputs):
                raise ValueError(f"segment '{step.segment}' and its step name different tensors")
        elif step.layer is None or not 0 <= step.layer < len(unet.layers):
            raise ValueError(f"a step has layer {step.layer!r}")
    if missing := set(unet.outputs) - written:
        raise ValueError(f"no step writes {sorted(missing)}")
    for library, entry in manifest.plans.items():
        plans.validate(library, entry, manifest.components, manifest.files)
    for layer in unet.layers:
        for variant in unet.ops[layer.op].values():
            if variant not in manifest.components:
                raise ValueError(f"op '{layer.op}' needs the unknown component '{variant}'")


def _check_path(path: str) -> None:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or ":" in path or not parts.parts:
        raise EngineError(f"the manifest names '{path}', which is outside the engine directory", "refusing to read it")
