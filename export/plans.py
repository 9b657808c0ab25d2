"""Plans: every segment, the text encoder and the VAE built ahead of time for GPUs that need not be there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ebca.engines.backends.tensorrt_library import platform_name
from ebca.engines.contract import dims, plans
from ebca.engines.contract.manifest import Component, TextEncoderSpec, UNetSpec, VaeSpec
from ebca.engines.contract.plans import LibraryPlans, Plan, Range
from ebca.errors import ExportError, ParameterError
from ebca.export.tensorrt import Builder, Built, InputRange
from ebca.export.workspace import Workspace

# Main and editing prompts together. The axis of contexts is a range in every plan: k, v and the contexts are small, and
# a plan for each number of them would hold the weights once more.
MAX_CONTEXTS = 4
# Prompts and negative prompts that are encoded at once.
_PROMPTS: Range = (1, 2, 16)
# What CLIP reads, where there is no text encoder to ask.
_TOKENS = 77
_LATENT = 8

OnProgress = Callable[[str, int], None]
"""Called with what is being built and the bytes of weights that are done. What it raises cancels the build."""


@dataclass(frozen=True)
class PictureShape:
    """Pictures at once, and their size in pixels: each smallest, best, largest."""

    pictures: Range
    height: Range
    width: Range


@dataclass(frozen=True)
class PlanOptions:
    """What to build. `capabilities` as of `ebca.export.tensorrt.check_capabilities`."""

    library: str
    shapes: tuple[PictureShape, ...]
    capabilities: tuple[str, ...] = ()
    max_contexts: int = MAX_CONTEXTS


@dataclass(frozen=True)
class Job:
    """One plan to build; `with_op` where its graph holds energy cross attention."""

    component: str
    sizes: Mapping[str, Range]
    file: str
    with_op: bool = False


def parse_shape(text: str) -> tuple[int, int, int]:
    """(pictures, height, width) of "1x512x768". Raises ParameterError."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ParameterError(f"shape '{text}' is not PICTURESxHEIGHTxWIDTH", "give one like 1x512x512")
    pictures, height, width = (int(part) for part in parts)
    if pictures < 1 or height < _LATENT or width < _LATENT or height % _LATENT or width % _LATENT:
        raise ParameterError(f"shape '{text}' needs one picture or more, of sides that are multiples of {_LATENT}")
    return pictures, height, width


def fixed(text: str) -> PictureShape:
    """One size only, see `parse_shape`."""
    return PictureShape(*((n, n, n) for n in parse_shape(text)))


def dynamic(texts: Sequence[str]) -> PictureShape:
    """A range from three shapes: smallest, best, largest. Raises ParameterError where they do not grow."""
    low, best, high = (parse_shape(text) for text in texts)
    for name, size in zip(("pictures", "heights", "widths"), zip(low, best, high, strict=True), strict=True):
        if not size[0] <= size[1] <= size[2]:
            raise ParameterError(f"the {name} {', '.join(map(str, size))} of a range do not grow", "give MIN BEST MAX")
    return PictureShape(*zip(low, best, high, strict=True))


def unet_sizes(shape: PictureShape, options: PlanOptions, text_encoder: TextEncoderSpec | None) -> dict[str, Range]:
    """The sizes of the UNet call for a shape of pictures; guidance takes two rows per picture."""
    tokens = text_encoder.max_length if text_encoder else _TOKENS
    low, best, high = shape.pictures
    return {
        "batch": (2 * low, 2 * best, 2 * high),
        "contexts": (1, 1, options.max_contexts),
        "tokens": (tokens, tokens, tokens),
        "height": _latent(shape.height),
        "width": _latent(shape.width),
    }


def jobs(
    options: PlanOptions,
    components: Mapping[str, Component],
    unet: UNetSpec,
    text_encoder: TextEncoderSpec | None,
    vae: VaeSpec | None,
) -> list[Job]:
    """Every plan that the options ask for, each once: what depends on no size that differs is shared by the shapes."""
    found: dict[str, Job] = {}

    def add(name: str, sizes: Mapping[str, Range]) -> None:
        component = components[name]
        used = plans.used_sizes((*component.inputs.values(), *component.outputs.values()), sizes)
        file = f"plans/{options.library}/{name}.{_tag(used)}.plan"
        found.setdefault(file, Job(name, used, file, with_op=name == unet.full_unet_with_updates))

    for shape in options.shapes:
        sizes = unet_sizes(shape, options, text_encoder)
        for segment in unet.segments:
            add(segment, sizes)
        if unet.full_unet:
            add(unet.full_unet, {**sizes, "contexts": (1, 1, 1)})
        if unet.full_unet_with_updates:
            add(unet.full_unet_with_updates, sizes)
        if text_encoder:
            add(text_encoder.component, {**sizes, "batch": _PROMPTS})
        if vae:
            # One picture at a time, which bounds the memory.
            for part in (vae.decoder, vae.encoder):
                add(part, {**sizes, "batch": (1, 1, 1)})
    return list(found.values())


def build(
    work: Sequence[Job],
    options: PlanOptions,
    components: Mapping[str, Component],
    text_encoder: TextEncoderSpec | None,
    workspace: Workspace,
    on_progress: OnProgress,
) -> LibraryPlans:
    """Build what is not built yet; each finished plan is kept if a later one fails.

    Raises:
        BackendError: the library is missing, or needs a GPU.
        ExportError: it cannot build a component, or built other tensors than the component has.
    """
    builder = Builder(options.library, options.capabilities, with_op=any(job.with_op for job in work))
    made: dict[str, list[Plan]] = {}
    done = 0
    for index, job in enumerate(work):
        component = components[job.component]
        text = f"plan {index + 1} of {len(work)}: {job.component} for {plans.describe(job.sizes)}"
        size = workspace.record(component.weights).size if component.weights else 0
        on_progress(text, done)
        key = f"{job.file} {builder.version} {' '.join(options.capabilities)}"
        if workspace.facts(key) is None:
            built = builder.build(
                workspace.folder / component.graph,
                {name: _input_range(spec.shape, job.sizes) for name, spec in component.inputs.items()},
                partial(_report, on_progress, text, done, size),
            )
            plan = _plan(job, component)
            _compare(job, plan, built)
            path = workspace.folder / job.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(built.plan)
            workspace.put_files(key, [job.file], {})
        made.setdefault(job.component, []).append(_plan(job, component))
        done += size
    return LibraryPlans(
        version=builder.version,
        compute_capabilities=options.capabilities or (builder.own_capability(),),
        platform=platform_name(),
        shapes=tuple(unet_sizes(shape, options, text_encoder) for shape in options.shapes),
        components={name: tuple(entries) for name, entries in made.items()},
    )


def _report(on_progress: OnProgress, text: str, before: int, size: int, part: float) -> None:
    on_progress(text, before + int(part * size))


def _plan(job: Job, component: Component) -> Plan:
    return Plan(
        job.file, job.sizes, plans.resolve(component.inputs, job.sizes), plans.resolve(component.outputs, job.sizes)
    )


def _compare(job: Job, plan: Plan, built: Built) -> None:
    """What the library says it built against what the manifest will say."""
    for expected, actual in ((plan.inputs, built.inputs), (plan.outputs, built.outputs)):
        shown = {
            name: (spec.dtype, tuple(d if isinstance(d, int) else -1 for d in spec.shape))
            for name, spec in expected.items()
        }
        if shown != dict(actual):
            odd = sorted(n for n in {*shown, *actual} if shown.get(n) != actual.get(n))
            raise ExportError(
                f"the plan of '{job.component}' has {odd[0]} as {actual.get(odd[0])} instead of {shown.get(odd[0])}",
                "please report the model",
            )


def _input_range(shape: Sequence[dims.Dim], sizes: Mapping[str, Range]) -> InputRange:
    return InputRange(*(dims.shape(shape, {name: r[which] for name, r in sizes.items()}) for which in range(3)))


def _latent(pixels: Range) -> Range:
    low, best, high = pixels
    return low // _LATENT, best // _LATENT, high // _LATENT


def _tag(sizes: Mapping[str, Range]) -> str:
    """Such as b2_c1-4_h64_w64: file names say for people what the manifest says."""
    return "_".join(
        f"{name[0]}{low}" if low == high else f"{name[0]}{low}-{high}" for name, (low, _, high) in sizes.items()
    )
