"""What `manifest.json` says, as data classes; `ebca.engines.contract.manifest` has the table of its members."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ebca.engines.contract import digest, dims
from ebca.engines.contract.dims import Dim
from ebca.engines.contract.plans import LibraryPlans
from ebca.engines.contract.tensors import TensorSpec

FORMAT = "ebca-engine"
VERSION = 2
GUIDANCE_SCALE = 7.5
"""The default of a manifest without one: the usual value for Stable Diffusion."""

ADDED_INPUTS = ("text_embeds", "time_ids")
"""What Stable Diffusion XL's UNet takes beside sample, timestep and contexts, both float32: the pooled embedding of the
prompt ["batch", P], and sizes ["batch", 6]: original height and width, top and left of the crop, target height and
width."""
TIME_IDS = 6
"""How many numbers a row of `time_ids` has."""

_JSON_NAMES = {"steps": "plan", "full_unet": "vanilla", "full_unet_with_updates": "whole"}


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
class SubjectLayers:
    """Where exclusive attention works: indices of layers of one size, whose ops have the guided variants too.

    `biased` layers add the bias to the scores. The maps of `sources`, some of these, tell where a subject is.
    """

    biased: tuple[int, ...]
    sources: tuple[int, ...]


@dataclass(frozen=True)
class UNetSpec:
    """The split UNet.

    `ops` maps the name of an op to the component of each of its variants. `max_contexts` bounds the number of main and
    editing prompts together (None: unlimited). `full_unet` is the component of the unsplit UNet: it has the same inputs
    and outputs, reads only the first context, and returns the contexts unchanged (None: not exported).
    `full_unet_with_updates` is the unsplit UNet with the op's variant "update" inside; it also takes the controls of
    that variant. `channels_last` maps a backend whose lowered graphs differ in it to the images between segments that
    are [B,h,w,C] there; `tensors` always has [B,C,h,w]. `subject_layers` is None where no layer can tell where
    a subject is. `inputs` are sample, timestep, contexts; a UNet that takes `ADDED_INPUTS` has both of them at the end.
    `controls` are float32 tensors that ControlNets write and segments read beside `inputs`: the sums of
    residuals, zero without any. In the JSON, `steps` is "plan", `full_unet` is "vanilla", and
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
    subject_layers: SubjectLayers | None = None
    controls: tuple[str, ...] = ()

    @property
    def pooled_size(self) -> int | None:
        """The width of `text_embeds`; None for a UNet that takes none."""
        width = self.tensors[ADDED_INPUTS[0]].shape[1] if ADDED_INPUTS[0] in self.inputs else None
        assert width is None or isinstance(width, int)
        return width

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
class ControlNetSpec:
    """One ControlNet. `hint` encodes an image [B,3,H,W] in [0, 1], with `downscale` pixels per latent and side.
    `component` takes the UNet's inputs, a scale, the hint, and the sum of the residuals before (`before_` and their
    names); it returns the sum with its own."""

    component: str
    hint: str
    downscale: int


@dataclass(frozen=True)
class VaeSpec:
    """Latents are `scaling_factor * (encoded - shift_factor)`; the graphs take and return unscaled latents.

    `preview`: a small decoder for previews, which takes them scaled; None: there is none.
    """

    decoder: str
    encoder: str
    latent_channels: int
    scaling_factor: float
    shift_factor: float
    downscale: int
    preview: str | None = None


@dataclass(frozen=True)
class TextEncoderSpec:
    """`layers`, `layers_component`: how many it has, and the component that returns any of them; None in directories
    that are older.

    `pooled_size` is None for one encoder. Else there are two in one component, which also takes `input_ids_2`, and also
    returns `pooled`: one embedding of that width for a whole text. `hidden_size` is that of both together, the first
    one's part first, which is `first_hidden_size` wide, and `layers` counts those that both can choose from.
    """

    component: str
    max_length: int
    hidden_size: int
    layers: int | None = None
    layers_component: str | None = None
    pooled_size: int | None = None
    first_hidden_size: int | None = None


@dataclass(frozen=True)
class TokenizerSpec:
    file: str
    info: Mapping[str, Any]


@dataclass(frozen=True)
class FileRecord:
    size: int
    sha256: str


@dataclass(frozen=True)
class Adapter:
    """What was merged into an engine: kind "lora" with its scale, or "embedding" with its token. `file` and `sha256`
    tell which file it was."""

    kind: str
    file: str
    sha256: str
    scale: float | None = None
    token: str | None = None


@dataclass(frozen=True)
class Derived:
    """Says that an engine directory was made of another one, at `base`, and what was merged into that."""

    base: str
    adapters: tuple[Adapter, ...]


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
    controlnets: Mapping[str, ControlNetSpec] = field(default_factory=dict)
    weights: str | None = None
    derived: Derived | None = None

    @property
    def kind(self) -> str:
        return str(self.model["kind"])

    @property
    def force_zeros_for_empty_prompt(self) -> bool:
        """Whether an empty negative prompt stands for embeddings that are zero."""
        return bool(self.model.get("force_zeros_for_empty_prompt", False))

    @property
    def guidance_scale(self) -> float:
        """The default guidance scale of this model."""
        return float(self.model.get("guidance_scale", GUIDANCE_SCALE))

    def to_json(self) -> str:
        """The text of `manifest.json`, with its digest."""
        data = asdict(self)
        # Without ControlNets a manifest is as it was before there were any.
        if not self.controlnets:
            del data["controlnets"], data["unet"]["controls"]
        data["unet"] = {_JSON_NAMES.get(name, name): value for name, value in data["unet"].items()}
        return digest.stamped({"format": FORMAT, "version": VERSION, **data})
