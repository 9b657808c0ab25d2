"""Validation of requests: which values each field accepts, and which fields go together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from ebca.engines.contract.manifest import Manifest, TextEncoderSpec
from ebca.runtime.conditioning import controlnets
from ebca.runtime.conditioning import edits as editing
from ebca.runtime.conditioning import sizes as size_conditions
from ebca.runtime.conditioning import subjects as subjects_of_prompts
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.conditioning.prompts import Conditioning, pooled_label
from ebca.runtime.conditioning.sizes import SizeConditions
from ebca.runtime.execution.control import check_norm_factor
from ebca.runtime.request.fields import PARTS, GenerateRequest, ImageInputs
from ebca.runtime.sampling import tables
from ebca.runtime.sampling.repaint import RePaint
from ebca.runtime.schema import parameters as rules
from ebca.runtime.validation import as_numbers, finite, flag, whole

OUTPUTS = ("pil", "np", "latents")

_ADDED = ("prompt_2", "negative_prompt_2", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


class Task(Enum):
    """The task of a request. It follows from the inputs that are given and from the UNet, see `resolve_task`."""

    TEXT_TO_IMAGE = "text-to-image"
    IMAGE_TO_IMAGE = "image-to-image"
    INPAINTING = "inpainting"
    REPAINT = "repaint"
    INSTRUCTION = "instruction"


@dataclass(frozen=True)
class Target:
    """What a request is validated against: the manifest, and the shape [n,C,h,w] of the session's latents."""

    manifest: Manifest
    latent_shape: tuple[int, int, int, int]

    @property
    def batch(self) -> int:
        """Images per call."""
        return self.latent_shape[0]


@dataclass(frozen=True)
class ValidRequest:
    """A validated request, with every default that depends on the engine filled in.

    Attributes:
        request: the fields as given.
        task: of the request.
        guidance_scale: of classifier-free guidance.
        steps: of the scheduler, or of RePaint.
        scheduler: its name in the manifest; "RePaint" for that task.
        skipped_steps: number of steps that are skipped at the start, because an image is there instead.
        strength: of image to image, and of inpainting if below 1; None for other tasks.
        image_guidance_scale: of InstructPix2Pix with guidance; None otherwise.
        repaint: settings of RePaint, given or default.
        seeds: one for all images, or one per image; None: random.
        latents: initial latents [n,C,h,w] float32, or None.
    """

    request: GenerateRequest
    task: Task
    guidance_scale: float
    steps: int
    scheduler: str
    skipped_steps: int
    strength: float | None
    image_guidance_scale: float | None
    repaint: RePaint
    seeds: tuple[int, ...] | None
    latents: np.ndarray | None

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on, which evaluates the unconditional half too."""
        return self.guidance_scale > 1

    @property
    def rows_per_image(self) -> int:
        """Rows of the UNet's input for each image: 1; 2 with guidance; 3 if an image guides too."""
        return 1 + self.guided + (self.image_guidance_scale is not None)


def validate(request: GenerateRequest, target: Target) -> ValidRequest:
    """Validate a request without reading files or computing anything.

    Images, shapes of embeddings, words of a prompt and the lengths of schedules are checked later, where they are read.

    Raises:
        ParameterError: a wrong value, or fields that do not go together.
        EngineError: a task that this engine does not support.
    """
    check_types(request)
    manifest, inputs = target.manifest, request.image_inputs
    check_output(request.output, manifest)
    task = resolve_task(inputs, manifest)
    scale = request.guidance.guidance_scale
    guidance_scale = finite("guidance_scale", manifest.guidance_scale if scale is None else scale)
    steps = whole("steps", tables.default_steps(manifest.schedulers) if request.steps is None else request.steps)
    strength, skipped = None, 0
    if task is Task.IMAGE_TO_IMAGE:
        strength = rules.DEFAULT_STRENGTH if inputs.strength is None else inputs.strength
        skipped = skipped_steps(strength, steps)
    elif task is Task.INPAINTING and inputs.strength is not None:
        skipped = skipped_steps(inputs.strength, steps)
        # All of it is a start from noise, as without a strength.
        strength = inputs.strength if inputs.strength < 1 else None
    scheduler = _scheduler(request, task, skipped, manifest)
    edits = editing.check(request.guidance.edits, manifest.unet.max_contexts)
    check_norm_factor(request.guidance.norm_factor)
    check_conditioning(request.conditioning, edits, guided=guidance_scale > 1, manifest=manifest)
    check_added(request.conditioning, request.sizes, manifest)
    subjects_of_prompts.check(request.subject, request.conditioning, target.batch)
    controlnets.check(request.controlnets, manifest)
    if request.subject.on:
        require_subject_layers(manifest)
    return ValidRequest(
        request=request,
        task=task,
        guidance_scale=guidance_scale,
        steps=steps,
        scheduler=scheduler,
        skipped_steps=skipped,
        strength=strength,
        image_guidance_scale=_image_guidance_scale(inputs, task, guidance_scale),
        repaint=inputs.repaint or RePaint(),
        seeds=seeds(request.seed, target.batch),
        latents=None if request.latents is None else checked_latents(request.latents, target.latent_shape),
    )


def require_subject_layers(manifest: Manifest) -> None:
    """Raise EngineError if no layers of this engine can keep subjects apart."""
    if manifest.unet.subject_layers is None:
        raise rules.SUBJECTS_ENGINE.error()


def check_output(output: str, manifest: Manifest) -> None:
    """Raise ParameterError for an unknown kind of output, and EngineError for images without a VAE."""
    if output not in OUTPUTS:
        raise rules.OUTPUT.error(value=output)
    if output != "latents" and manifest.vae is None:
        raise rules.NO_VAE_TO_DECODE.error()


def resolve_task(inputs: ImageInputs, manifest: Manifest) -> Task:
    """The task of a request with these inputs.

    Raises:
        ParameterError: inputs that do not go together.
        EngineError: inputs that this model does not support.
    """
    unet = manifest.unet
    inpaints, instructed = (unet.in_channels == 2 * unet.out_channels + more for more in (1, 0))
    if not (inpaints or instructed) and unet.in_channels != unet.out_channels:
        raise rules.UNET_CHANNELS.error(in_channels=unet.in_channels, out_channels=unet.out_channels)
    if inputs.mask is not None and inputs.image is None:
        raise rules.MASK_WITHOUT_IMAGE.error()
    if inputs.strength is not None and inputs.image is None:
        raise rules.STRENGTH_WITHOUT_IMAGE.error()
    if inputs.strength is not None and inputs.mask is not None and not inpaints:
        raise rules.STRENGTH_WITH_MASK.error()
    if inputs.image is not None and manifest.vae is None:
        raise rules.NO_VAE_TO_ENCODE.error()
    if inpaints and inputs.mask is None:
        raise rules.INPAINTING_MODEL_WITHOUT_MASK.error(in_channels=unet.in_channels)
    if instructed:
        return _instruction(inputs, unet.in_channels)
    if inputs.image_guidance_scale is not None:
        raise rules.IMAGE_GUIDANCE_SCALE_MODEL.error()
    if inputs.repaint is not None:
        if not isinstance(inputs.repaint, RePaint):
            raise rules.REPAINT_TYPE.error(value=repr(inputs.repaint))
        if inpaints:
            raise rules.REPAINT_WITH_INPAINTING_MODEL.error()
        if inputs.mask is None:
            raise rules.REPAINT_WITHOUT_MASK.error()
    if inputs.mask is not None:
        return Task.INPAINTING if inpaints else Task.REPAINT
    return Task.TEXT_TO_IMAGE if inputs.image is None else Task.IMAGE_TO_IMAGE


def _instruction(inputs: ImageInputs, in_channels: int) -> Task:
    """The task of InstructPix2Pix. Raises EngineError without an image, ParameterError for inputs of other tasks."""
    if inputs.image is None:
        raise rules.INSTRUCTION_WITHOUT_IMAGE.error(in_channels=in_channels)
    for name in ("mask", "strength", "repaint"):
        if getattr(inputs, name) is not None:
            raise rules.INSTRUCTION_WITH.error(name=name)
    return Task.INSTRUCTION


def _image_guidance_scale(inputs: ImageInputs, task: Task, guidance_scale: float) -> float | None:
    """Of InstructPix2Pix with guidance, given or the default; else None."""
    given = inputs.image_guidance_scale
    if task is not Task.INSTRUCTION:
        return None
    if given is not None:
        given = finite("image_guidance_scale", given)
        if given < 1:
            raise rules.IMAGE_GUIDANCE_SCALE_RANGE.error(value=given)
        if guidance_scale <= 1:
            raise rules.IMAGE_GUIDANCE_SCALE_OFF.error(value=guidance_scale)
    if guidance_scale <= 1:
        return None
    return rules.DEFAULT_IMAGE_GUIDANCE_SCALE if given is None else given


def skipped_steps(strength: float, steps: int) -> int:
    """Number of steps that are skipped at the start of a noised image, as diffusers computes it.

    Raises:
        ParameterError: a strength out of range, or so small that no step is left.
    """
    share = finite("strength", strength)
    if not 0 < share <= 1:
        raise rules.STRENGTH_RANGE.error(value=share)
    run = min(int(steps * share), steps)
    if run < 1:
        raise rules.STRENGTH_LEAVES_NO_STEP.error(value=share, count=steps)
    return steps - run


def check_inversion(conditioning: Conditioning, sizes: SizeConditions, manifest: Manifest, *, regularize: bool) -> None:
    """Check the parameters of `Session.invert` that need no image.

    Raises:
        ParameterError: a prompt that is not given exactly once, or `regularize` without noise predictions.
        EngineError: an inpainting model.
    """
    if manifest.unet.in_channels != manifest.unet.out_channels:
        raise rules.INVERSION_WITH_INPAINTING_MODEL.error()
    check_conditioning(conditioning, (), guided=False, manifest=manifest)
    check_added(conditioning, sizes, manifest)
    if regularize:
        require_noise_prediction(manifest, "regularize")


def require_noise_prediction(manifest: Manifest, what: str) -> None:
    """Raise ParameterError, naming the feature `what`, if the model predicts something other than noise."""
    if manifest.schedulers["config"].get("prediction_type", "epsilon") != "epsilon":
        raise rules.NOISE_PREDICTION.error(what=what)


def check_conditioning(conditioning: Conditioning, edits: Sequence[Edit], *, guided: bool, manifest: Manifest) -> None:
    """Check that each prompt is given exactly once, as texts or as embeddings, and check the token weights.

    Token weights must be finite numbers. Their keys are positions or, with a text prompt, words.

    Raises:
        ParameterError: one of these is not so.
    """
    given = [("prompt", conditioning.prompt, conditioning.prompt_embeds)]
    given += [(f"editing prompt {i + 1}", edit.prompt, edit.prompt_embeds) for i, edit in enumerate(edits)]
    for name, text, embeds in given:
        if (text is None) == (embeds is None):
            raise rules.PROMPT_OR_EMBEDS.error(name=name)
    needs_text = guided and conditioning.negative_prompt_embeds is None
    if needs_text and conditioning.prompt_embeds is not None and manifest.text_encoder is None:
        raise rules.GUIDANCE_NEEDS_NEGATIVE.error()
    if not isinstance(conditioning.token_weights, Mapping):
        raise rules.TOKEN_WEIGHTS_TYPE.error(value=repr(conditioning.token_weights), example="{'red': 1.3}")
    for key, factor in conditioning.token_weights.items():
        finite(f"the factor of '{key}' in token_weights", factor)
        if not isinstance(key, str):
            whole("a position in token_weights", key)
        elif conditioning.prompt is None:
            raise rules.TOKEN_WORD_WITHOUT_PROMPT.error(word=key)
    flag("prompt_weighting", conditioning.prompt_weighting)
    flag("long_prompts", conditioning.long_prompts)
    _check_clip_skip(conditioning.clip_skip, manifest.text_encoder)


def check_added(conditioning: Conditioning, sizes: SizeConditions, manifest: Manifest) -> None:
    """Check what Stable Diffusion XL takes beside prompts: second texts, pooled embeddings, and sizes.

    Raises:
        ParameterError: one of these for a model that takes none, embeddings without pooled ones, pooled embeddings or
            second texts without the first, or a wrong size.
    """
    if manifest.unet.pooled_size is None:
        seconds = [name for name in _ADDED if getattr(conditioning, name) is not None]
        for name in (*seconds, *(name for name, _ in size_conditions.given(sizes))):
            raise rules.ADDED_ENGINE.error(name=name)
        return
    size_conditions.check(sizes)
    for text in ("prompt", "negative_prompt"):
        embeds, second = f"{text}_embeds", f"{text}_2"
        pooled = pooled_label(embeds)
        has = {name: getattr(conditioning, name) is not None for name in (embeds, second, pooled)}
        if has[embeds] and has[second]:
            raise rules.SECOND_PROMPT_WITH_EMBEDS.error(name=second, other=embeds)
        if has[embeds] and not has[pooled]:
            width = manifest.unet.pooled_size
            raise rules.POOLED_NEEDED.error(name=embeds, other=pooled, width=width)
        if has[pooled] and not has[embeds]:
            raise rules.POOLED_ALONE.error(name=pooled, other=embeds)


def _check_clip_skip(value: int, encoder: TextEncoderSpec | None) -> None:
    """Raise ParameterError for layers that there are not, and EngineError for a directory without them."""
    if not whole("clip_skip", value) or encoder is None:
        return
    if encoder.layers is None or encoder.layers_component is None:
        raise rules.CLIP_SKIP_ENGINE.error()
    if not 0 <= value < encoder.layers:
        raise rules.CLIP_SKIP_RANGE.error(value=value, layers=encoder.layers, last=encoder.layers - 1)


def seeds(seed: int | Sequence[int] | None, batch: int) -> tuple[int, ...] | None:
    """One seed for all images, or one per image; None for a random seed.

    Raises:
        ParameterError: not whole numbers, or a wrong number of them.
    """
    if seed is None:
        return None
    given = np.asarray(seed, dtype=object)
    if given.ndim == 0:
        return (whole("seed", seed),)
    every = tuple(whole("seed", one) for one in given.tolist())
    if len(every) != batch:
        raise rules.SEED_COUNT.error(count=len(every), batch=batch)
    return every


def checked_latents(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A caller's latents as float32 [n,C,h,w]. Raises ParameterError for a wrong shape or non-finite values."""
    array = as_numbers("latents", value, f"an array {list(shape)}")
    if array.shape != shape:
        raise rules.LATENTS_SHAPE.error(shape=list(array.shape), expected=list(shape))
    if not np.isfinite(array).all():
        raise rules.LATENTS_NOT_FINITE.error()
    return array


def check_types(request: GenerateRequest) -> None:
    """Raise ParameterError unless the request and its parts are such, and its switches are True or False."""
    if not isinstance(request, GenerateRequest):
        raise rules.REQUEST_PART.error(what="the request", kind=type(request).__name__, expected="GenerateRequest")
    for name, part in PARTS.items():
        given = getattr(request, name)
        if not isinstance(given, part):
            expected = f"{part.__module__.removeprefix('ebca.')}.{part.__name__}"
            raise rules.REQUEST_PART.error(what=name, kind=type(given).__name__, expected=expected)
    flag("reset_edits", request.guidance.reset_edits)
    flag("composite", request.image_inputs.composite)
    flag("vae_tiling", request.vae_tiling)
    for name, value in vars(request.telemetry).items():
        flag(name, value)


def _scheduler(request: GenerateRequest, task: Task, skipped: int, manifest: Manifest) -> str:
    """The scheduler's name in the manifest. Its number of steps is checked when its table is read.

    Raises:
        ParameterError: the engine does not have it, or it does not apply to the task.
    """
    section, name = manifest.schedulers, request.scheduler
    if task is Task.REPAINT:
        if name is not None:
            raise rules.SCHEDULER_WITH_REPAINT.error(value=name)
        require_noise_prediction(manifest, "RePaint")
        return "RePaint"
    if name is None:
        # Engines that do not name one for intermediate timesteps have a multistep default.
        name = str(section.get("image_to_image", "ddim")) if skipped else str(section["default"])
    choices = [choice for choice in tables.available_schedulers(section) if choice != tables.INVERSE]
    found = tables.find_scheduler(name, choices) if isinstance(name, str) else None
    if found is None:
        raise tables.unknown_scheduler(section, name, choices)
    return found
