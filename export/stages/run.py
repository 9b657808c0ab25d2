"""Which stages an export has, in which order, and the manifest that their results make."""

from collections.abc import Iterator, Mapping
from functools import partial

from ebca.engines.contract.limits import NAME_BYTES
from ebca.engines.contract.manifest import FileRecord, Manifest
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.distilled import default_guidance
from ebca.export.stages import (
    controlnets,
    full_unet,
    plans,
    schedulers,
    text_encoder,
    tokenizer,
    unet,
    vae,
    weight_map,
)
from ebca.export.stages.context import Context, Stage, StageResult
from ebca.export.stages.unet_inputs import UNetInputs
from ebca.export.weights import versions
from ebca.export.workspace import component_files


def stages(context: Context) -> Iterator[Stage]:
    """The stages of an export in order: first those that take seconds and may refuse the checkpoint. The UNet is traced
    once for all stages that need it."""
    options = context.options
    yield tokenizer.export
    yield schedulers.export
    inputs = UNetInputs.of(context)
    yield partial(unet.export, inputs=inputs)
    if options.with_full_unet:
        yield partial(full_unet.export, inputs=inputs)
    if options.with_full_unet_updates:
        yield partial(full_unet.export_with_updates, inputs=inputs)
    if context.checkpoint.controlnets:
        yield partial(controlnets.export, traced=inputs.traced)
    yield text_encoder.export
    yield vae.export
    yield weight_map.export
    if options.plans is not None:
        yield plans.export


def run(context: Context) -> StageResult:
    """Run all stages; returns their results joined."""
    for stage in stages(context):
        context = context.after(stage(context))
    return context.before


def manifest(context: Context, result: StageResult) -> Manifest:
    """The manifest of an export whose stages have run."""
    checkpoint, options = context.checkpoint, context.options
    source = checkpoint.source
    return Manifest(
        model={
            "name": _line(checkpoint.name),
            "kind": _kind(checkpoint),
            "source": {name: _unicode(value) if isinstance(value, str) else value for name, value in source.items()},
            "guidance_scale": float(default_guidance(checkpoint, options.guidance_scale)),
            "force_zeros_for_empty_prompt": checkpoint.force_zeros_for_empty_prompt,
        },
        precision=options.precision,
        components=result.components,
        files=_records(context, result),
        parity=result.parity,
        created_by=versions(),
        compute=options.compute,
        **result.sections,
    )


def _line(text: str) -> str:
    """A name as manifests may have it; that of a folder may hold anything, even a line break."""
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return _unicode(printable).encode()[:NAME_BYTES].decode(errors="ignore") or "?"


def _unicode(text: str) -> str:
    """The text without what stands for bytes of a file name that are not UTF-8."""
    return text.encode(errors="replace").decode()


def _records(context: Context, result: StageResult) -> Mapping[str, FileRecord]:
    paths = {*result.files, *(path for component in result.components.values() for path in component_files(component))}
    return {path: context.workspace.record(path) for path in sorted(paths)}


def _kind(checkpoint: Checkpoint) -> str:
    if checkpoint.text_encoder is None or checkpoint.vae is None or checkpoint.tokenizer_json is None:
        return "unet"
    latent = checkpoint.unet.config.out_channels
    kinds = {latent: "text-to-image", 2 * latent: "instruct-pix2pix", 2 * latent + 1: "inpainting"}
    return kinds[checkpoint.unet.config.in_channels]
