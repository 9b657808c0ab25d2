"""Which stages an export has, in which order, and the manifest that their results make."""

from collections.abc import Mapping
from functools import partial

from ebca.engines.contract.manifest import FileRecord, Manifest
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.stages import full_unet, plans, schedulers, text_encoder, tokenizer, unet, vae
from ebca.export.stages.context import Context, Stage, StageResult
from ebca.export.stages.unet_inputs import UNetInputs
from ebca.export.weights import versions
from ebca.export.workspace import component_files


def stages(context: Context) -> list[Stage]:
    """The stages of an export in order. The UNet is traced here, once for all stages that need it."""
    options, inputs = context.options, UNetInputs.of(context)
    wanted: list[tuple[bool, Stage]] = [
        (True, partial(unet.export, inputs=inputs)),
        (options.with_full_unet, partial(full_unet.export, inputs=inputs)),
        (options.with_full_unet_updates, partial(full_unet.export_with_updates, inputs=inputs)),
        (True, text_encoder.export),
        (True, vae.export),
        (True, tokenizer.export),
        (True, schedulers.export),
        (options.plans is not None, plans.export),
    ]
    return [stage for is_wanted, stage in wanted if is_wanted]


def run(context: Context) -> StageResult:
    """Run all stages; returns their results joined."""
    for stage in stages(context):
        context = context.after(stage(context))
    return context.before


def manifest(context: Context, result: StageResult) -> Manifest:
    """The manifest of an export whose stages have run."""
    checkpoint, options = context.checkpoint, context.options
    return Manifest(
        model={
            "name": checkpoint.name,
            "kind": _kind(checkpoint),
            "source": checkpoint.source,
            "guidance_scale": float(options.guidance_scale),
        },
        precision=options.precision,
        components=result.components,
        files=_records(context, result),
        parity=result.parity,
        created_by=versions(),
        compute=options.compute,
        **result.sections,
    )


def _records(context: Context, result: StageResult) -> Mapping[str, FileRecord]:
    paths = {*result.files, *(path for component in result.components.values() for path in component_files(component))}
    return {path: context.workspace.record(path) for path in sorted(paths)}


def _kind(checkpoint: Checkpoint) -> str:
    if checkpoint.text_encoder is None or checkpoint.vae is None or checkpoint.tokenizer_json is None:
        return "unet"
    return "inpainting" if checkpoint.unet.config.in_channels != checkpoint.unet.config.out_channels else "text-to-image"
