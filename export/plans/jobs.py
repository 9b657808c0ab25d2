"""The list of plans that an engine directory needs: one per component and size."""

from collections.abc import Mapping
from dataclasses import dataclass

from ebca.engines.contract import plans
from ebca.engines.contract.manifest import Component, TextEncoderSpec, UNetSpec, VaeSpec
from ebca.engines.contract.plans import Range
from ebca.export.plans.shapes import PIXELS_PER_LATENT, ROWS_PER_IMAGE, ImageShape, PlanOptions

# Prompts and negative prompts that are encoded at once.
_PROMPTS: Range = (1, 2, 16)
# What CLIP reads, for a UNet without a text encoder.
_TOKENS = 77


@dataclass(frozen=True)
class Job:
    """One plan to build; `with_op` if its graph contains energy cross attention."""

    component: str
    sizes: Mapping[str, Range]
    file: str
    with_op: bool = False


def unet_sizes(
    shape: ImageShape, options: PlanOptions, text_encoder: TextEncoderSpec | None, vae: VaeSpec | None
) -> dict[str, Range]:
    """The sizes of the UNet call for an image shape, with guidance."""
    scale = PIXELS_PER_LATENT if vae is None else vae.downscale
    tokens = text_encoder.max_length if text_encoder else _TOKENS
    return {
        "batch": _scaled(shape.images, ROWS_PER_IMAGE),
        "contexts": (1, 1, options.max_contexts),
        "tokens": (tokens, tokens, tokens),
        "height": _latents(shape.height, scale),
        "width": _latents(shape.width, scale),
    }


def jobs(
    options: PlanOptions,
    components: Mapping[str, Component],
    unet: UNetSpec,
    text_encoder: TextEncoderSpec | None,
    vae: VaeSpec | None,
) -> list[Job]:
    """Every plan that the options ask for, each once: shapes share a plan that depends on no size they differ in."""
    found: dict[str, Job] = {}

    def add(name: str, sizes: Mapping[str, Range]) -> None:
        component = components[name]
        used = plans.used_sizes((*component.inputs.values(), *component.outputs.values()), sizes)
        file = f"plans/{options.library}/{name}.{_tag(used)}.plan"
        found.setdefault(file, Job(name, used, file, with_op=name == unet.full_unet_with_updates))

    for shape in options.shapes:
        sizes = unet_sizes(shape, options, text_encoder, vae)
        for segment in unet.segments:
            add(segment, sizes)
        if unet.full_unet:
            add(unet.full_unet, {**sizes, "contexts": (1, 1, 1)})
        if unet.full_unet_with_updates:
            add(unet.full_unet_with_updates, sizes)
        if text_encoder:
            add(text_encoder.component, {**sizes, "batch": _PROMPTS})
        if vae:
            # One image at a time, which bounds the memory.
            for part in (vae.decoder, vae.encoder):
                add(part, {**sizes, "batch": (1, 1, 1)})
    return list(found.values())


def _scaled(size: Range, factor: int) -> Range:
    low, best, high = size
    return factor * low, factor * best, factor * high


def _latents(pixels: Range, scale: int) -> Range:
    low, best, high = pixels
    return low // scale, best // scale, high // scale


def _tag(sizes: Mapping[str, Range]) -> str:
    """Such as b2_c1-4_h64_w64, so that people can tell files apart; programs read the sizes from the manifest."""
    return "_".join(
        f"{name[0]}{low}" if low == high else f"{name[0]}{low}-{high}" for name, (low, _, high) in sizes.items()
    )
