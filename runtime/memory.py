"""Whether a call can end well: its sizes, and the memory that it takes at least. Nothing is computed or allocated here.

The estimate is a lower bound, so that nothing is refused that fits. It is exact for what this package allocates: the
buffers of an evaluation, the history of noise predictions, controls, telemetry, contexts, and decoded images. What
libraries need inside a graph is the largest sum of tensors that must exist at the same time, see
`ebca.engines.contract.manifest.Component.scratch`; their real peak is higher, since they keep more than one node's
tensors and round sizes up. Weights, which are mapped from files, are left out.

On the CPU with onnxruntime, the measured peak was 2.4 to 3.0 times the estimate: `shapes`, 1 image of 256 x 256, 512 x
512 and 1024 x 1024 pixels, 4 of 512 x 512, 32 of 256 x 256, and 256 of 64 x 64.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ebca.engines.contract import dims
from ebca.engines.contract.tensors import TensorSpec, nbytes_of
from ebca.engines.machine.available import available_bytes
from ebca.errors import EngineError
from ebca.runtime import tiling
from ebca.runtime.components import Components
from ebca.runtime.conditioning.prompts import PromptEncoder
from ebca.runtime.execution.buffers import buffer_bytes
from ebca.runtime.execution.residuals import residual_bytes
from ebca.runtime.request.fields import GenerateRequest
from ebca.runtime.request.validate import Task, ValidRequest
from ebca.runtime.schema import parameters as rules

Sizes = Mapping[str, int]

# Decoded images as the VAE returns them, and in [0, 1]: float32, three channels.
_DECODED_BYTES = 24
_FLOAT, _DOUBLE = 4, 8
# Elements of a tensor that libraries for GPUs can count.
_COUNTED = 2**31 - 1


@dataclass(frozen=True)
class Need:
    """Bytes that exist at the same time, on the device and on the host beside it."""

    device: int
    host: int = 0

    def __add__(self, other: "Need") -> "Need":
        return Need(self.device + other.device, self.host + other.host)


def check_size(height: int, width: int) -> None:
    """Raise ParameterError for an image [height, width] in pixels that is larger than any that is made."""
    if height * width > rules.MAX_PIXELS:
        raise rules.IMAGE_TOO_LARGE.error(height=height, width=width, limit=rules.MAX_PIXELS)


def check_batch(batch: int) -> None:
    """Raise ParameterError for a number of images per call that is not allowed."""
    if batch < 1:
        raise rules.BATCH.error(value=batch)
    if batch > rules.MAX_IMAGES:
        raise rules.BATCH_TOO_LARGE.error(value=batch, limit=rules.MAX_IMAGES)


def check_evaluation(components: Components, sizes: Sizes, what: str) -> None:
    """Check that one evaluation of the UNet fits.

    Args:
        components: the opened engine.
        sizes: batch (rows), contexts, tokens, height, width (latent).
        what: is asked for, for messages.

    Raises:
        OutOfMemoryError: there is too little memory.
        ParameterError: a tensor has more elements than a GPU's libraries can count.
    """
    _check(components, [_sampling(components, sizes)], what)
    _check_counts(components, components.manifest.unet.segments, sizes, what)


def check_generation(
    components: Components, valid: ValidRequest, latent_shape: tuple[int, int, int, int], size: tuple[int, int]
) -> None:
    """Check that a generation fits.

    Args:
        components: the opened engine.
        valid: the request.
        latent_shape: [n,C,h,w].
        size: of the images, (height, width) in pixels.

    Raises:
        OutOfMemoryError, ParameterError: as `check_evaluation`.
    """
    manifest, request = components.manifest, valid.request
    images, _, height, width = latent_shape
    what = described(images, size)
    contexts = 1 + len(request.guidance.edits)
    prompts = PromptEncoder(components, images)
    tokens = prompts.tokens(request.conditioning, request.guidance.edits, guided=valid.guided)
    sizes = {
        "batch": images * valid.rows_per_image, "contexts": contexts, "tokens": tokens,
        "height": height, "width": width,
    }  # fmt: skip
    held = Need(0, _held_on_host(valid, latent_shape, sizes, len(manifest.unet.layers)))
    sampling = _sampling(components, sizes) + _controlling(components, valid, sizes)
    phases = [held + sampling]
    if manifest.text_encoder is not None:
        encoder = manifest.text_encoder
        rows = math.ceil(tokens / encoder.max_length)
        texts = {**sizes, "batch": max(_distinct_texts(request.conditioning.prompt), rows)}
        width = encoder.max_length * encoder.hidden_size + (encoder.pooled_size or 0)
        outputs = texts["batch"] * width * _FLOAT
        phases.append(Need(scratch_bytes(components, encoder.component, texts) + outputs))
    _check(components, phases, what)
    _check_counts(components, manifest.unet.segments, sizes, what)
    _check_vae(components, request, sizes, held, images, size)


def _check_vae(
    components: Components, request: GenerateRequest, sizes: Sizes, held: Need, images: int, size: tuple[int, int]
) -> None:
    """Check that images can be encoded and decoded; `held` is what stays from sampling."""
    manifest, what = components.manifest, described(images, size)
    if manifest.vae is None:
        return
    side = tiling.tile_side(manifest.unet.sample_size)
    larger = tiling.is_tiled(sizes["height"], sizes["width"], side)
    one = {**sizes, "batch": 1}
    if request.vae_tiling:
        one |= {name: min(sizes[name], side) for name in ("height", "width")}
    phases, checked = [], []
    if request.image_inputs.image is not None:
        phases.append(Need(scratch_bytes(components, manifest.vae.encoder, one), 12 * math.prod(size)))
        checked.append(manifest.vae.encoder)
    if request.output != "latents":
        # The buffers of the evaluations are still there.
        buffers = buffer_bytes(manifest.unet, sizes)
        decoder = Need(buffers + scratch_bytes(components, manifest.vae.decoder, one))
        phases.append(held + decoder + Need(0, _DECODED_BYTES * images * math.prod(size)))
        checked.append(manifest.vae.decoder)
    rule = rules.MEMORY_NEEDED_UNTILED if larger and not request.vae_tiling else rules.MEMORY_NEEDED
    _check(components, phases, what, rule)
    _check_counts(components, checked, one, what)


def described(images: int, size: tuple[int, int]) -> str:
    """What is asked for, in words; size: (height, width) in pixels."""
    return f"{images} image{'' if images == 1 else 's'} of {size[0]} x {size[1]} pixels"


@contextmanager
def described_shortage(what: str) -> Iterator[None]:
    """Turn a MemoryError into an OutOfMemoryError that says for what there was too little memory."""
    try:
        yield
    except MemoryError:
        raise rules.MEMORY_SHORT.error(what=what) from None


def scratch_bytes(components: Components, name: str, sizes: Sizes) -> int:
    """What a component needs inside at least, in bytes; 0 if that is not known, as for plans built ahead of time."""
    if components.backend.name in components.manifest.plans:
        return 0
    component = components.manifest.components[name]
    half = components.precision == "bf16" and not component.float32_only
    largest = max((sum(nbytes_of(tensor, sizes) for tensor in node) for node in component.scratch), default=0)
    return largest // 2 if half else largest


def _sampling(components: Components, sizes: Sizes) -> Need:
    unet = components.manifest.unet
    scratch = max((scratch_bytes(components, name, sizes) for name in unet.segments), default=0)
    return Need(buffer_bytes(unet, sizes) + scratch)


def _controlling(components: Components, valid: ValidRequest, sizes: Sizes) -> Need:
    """What ControlNets add to an evaluation."""
    manifest, count = components.manifest, len(valid.request.controlnets.each)
    if not count:
        return Need(0)
    first = next(iter(manifest.controlnets.values()))
    hint = nbytes_of(manifest.components[first.component].inputs["hint"], sizes)
    return Need(residual_bytes(manifest.unet, sizes, count) + count * hint)


def _distinct_texts(prompt: object) -> int:
    """Texts that are encoded together, at least. Other forms are checked, or used up, where they are encoded."""
    return len(set(map(str, prompt))) if isinstance(prompt, list | tuple) else 1


def _held_on_host(valid: ValidRequest, latent_shape: tuple[int, ...], sizes: Sizes, layers: int) -> int:
    """What the host keeps while it samples."""
    latents, request = math.prod(latent_shape), valid.request
    evaluations = max(valid.steps - valid.skipped_steps, 1)
    rows, contexts, tokens = sizes["batch"], sizes["contexts"], sizes["tokens"]
    total = evaluations * rows * contexts * tokens * _FLOAT
    if valid.task is not Task.REPAINT:
        # The history of noise predictions.
        total += evaluations * latents * _FLOAT
    if request.telemetry.energies:
        total += evaluations * layers * 2 * rows * contexts * _FLOAT
    if request.telemetry.attention_maps:
        total += latent_shape[0] * tokens * math.prod(latent_shape[2:]) * (_DOUBLE + _FLOAT)
    return total


def _check(components: Components, phases: Iterable[Need], what: str, rule: rules.Rule = rules.MEMORY_NEEDED) -> None:
    room, host = components.device.room(), available_bytes()
    for need in phases:
        if room is None:
            _compare(need.device + need.host, host, what, "", rule)
        else:
            _compare(need.device, room, what, f" on {components.device.name}", rule)
            _compare(need.host, host, what, "", rule)


def _compare(needed: int, available: int, what: str, where: str, rule: rules.Rule) -> None:
    if needed > available:
        raise rule.error(what=what, where=where, needed=shown_bytes(needed), available=shown_bytes(available))


def _check_counts(components: Components, names: Iterable[str], sizes: Sizes, what: str) -> None:
    """Libraries for GPUs index tensors in 32 bits, and some without checking."""
    if components.device.room() is None:
        return
    for name in names:
        component = components.manifest.components[name]
        inside: Iterable[TensorSpec] = (tensor for node in component.scratch for tensor in node)
        for tensor in (*component.inputs.values(), *component.outputs.values(), *inside):
            try:
                count = math.prod(dims.shape(tensor.shape, sizes))
            except EngineError:
                # A size of its own, such as the positions of an op.
                continue
            if count > _COUNTED:
                raise rules.TENSOR_TOO_LARGE.error(what=what, count=count, limit=_COUNTED)


def shown_bytes(number: int) -> str:
    """Bytes in the largest unit that leaves a number above 1."""
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e6:.0f} MB"
