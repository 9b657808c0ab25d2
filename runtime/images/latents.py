"""What a generation is asked to do, and what it needs of the pictures it was given."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from ebca.engines.contract.manifest import Manifest
from ebca.errors import EngineError, ParameterError
from ebca.runtime.components import Components
from ebca.runtime.images.inputs import latent_mask, load_masks, load_pictures, warn_if_resized
from ebca.runtime.noise import NormalStream, draw
from ebca.runtime.sampling.repaint import RePaintPlan
from ebca.runtime.sampling.tables import SchedulerTable, load_alphas_cumprod
from ebca.runtime.validation import finite, whole

DEFAULT_STRENGTH = 0.8


class Task(Enum):
    """Follows from what is given and from the UNet."""

    TEXT_TO_IMAGE = "text-to-image"
    IMAGE_TO_IMAGE = "image-to-image"
    INPAINTING = "inpainting"
    REPAINT = "repaint"


@dataclass(frozen=True)
class RePaint:
    """Settings of RePaint, which inpaints with a model that was not trained for it.

    Attributes:
        jump_length: steps that a jump goes back (j in the paper).
        jump_count: how often each stretch is denoised (r in the paper); 1: no jumps.
        eta: 0 as the authors use it, 1 for the paper's random steps.
        update_known: let the context update look at the known region instead of the hole, as the authors' code does
            by mistake: it passes the inverted mask.
    """

    jump_length: int = 10
    jump_count: int = 10
    eta: float = 0.0
    update_known: bool = False

    def __post_init__(self) -> None:
        for name in ("jump_length", "jump_count"):
            if whole(name, getattr(self, name)) < 1:
                raise ParameterError(f"{name} is {getattr(self, name)}", "give 1 or more")
        if not 0 <= finite("eta", self.eta) <= 1:
            raise ParameterError(f"eta is {self.eta}", "give a number from 0 to 1")


@dataclass(frozen=True)
class Source:
    """Pictures and masks at the session's size.

    pixels [n,H,W,3] in [0, 1]; mask [n or 1,1,H,W] and hole [n or 1,1,h,w] of 0 and 1, or None.
    """

    pixels: np.ndarray
    mask: np.ndarray | None
    hole: np.ndarray | None


@dataclass(frozen=True)
class Seen:
    """What the loop gets to see of the pictures.

    start: what the scheduler starts from [n,C,h,w]; channels: what follows the latents into an inpainting UNet
    [n,1+C,h,w] or None; known: latents of the picture without the hole [n,C,h,w] or None.
    """

    start: np.ndarray
    channels: np.ndarray | None = None
    known: np.ndarray | None = None


def infer(manifest: Manifest, image: Any, mask: Any, strength: Any, repaint: Any) -> Task:
    """The task that the inputs ask for.

    Raises:
        ParameterError: inputs that do not go together.
        EngineError: inputs that this model cannot use.
    """
    unet = manifest.unet
    for_inpainting = unet.in_channels == 2 * unet.out_channels + 1
    if not for_inpainting and unet.in_channels != unet.out_channels:
        raise EngineError(
            f"this engine's UNet takes {unet.in_channels} channels and gives {unet.out_channels}",
            "pictures are made with models that take 4 or, for inpainting, 9",
        )
    if mask is not None and image is None:
        raise ParameterError("a mask was given without an image", "give the image whose masked part is to be made anew")
    if strength is not None and image is None:
        raise ParameterError("strength was given without an image", "it says how far image to image departs from one")
    if strength is not None and mask is not None:
        raise ParameterError("strength and mask do not go together", "inpainting makes the masked part anew")
    if image is not None and manifest.vae is None:
        raise EngineError("this engine directory has no VAE to encode an image with", "export a whole checkpoint")
    if for_inpainting and mask is None:
        raise EngineError(
            f"this engine's UNet takes {unet.in_channels} channels (an inpainting model)", "give it an image and a mask"
        )
    if repaint is not None and not isinstance(repaint, RePaint):
        raise ParameterError(f"repaint is {repaint!r}", "give ebca.RePaint(jump_length=..., jump_count=...)")
    if repaint is not None and (mask is None or for_inpainting):
        why = "this model inpaints by itself" if for_inpainting else "there is no mask"
        raise ParameterError(f"settings of RePaint were given, but {why}", "leave them out")
    if mask is not None:
        return Task.INPAINTING if for_inpainting else Task.REPAINT
    return Task.TEXT_TO_IMAGE if image is None else Task.IMAGE_TO_IMAGE


def begin(strength: float | None, steps: int) -> int:
    """How many of the steps image to image leaves out, as diffusers counts them.

    Raises:
        ParameterError: out of range, or so small that no step is left.
    """
    share = finite("strength", DEFAULT_STRENGTH if strength is None else strength)
    if not 0 < share <= 1:
        raise ParameterError(f"strength is {share:g}", "give a number above 0 (the image as it is) up to 1 (all anew)")
    run = min(int(whole("steps", steps) * share), steps)
    if run < 1:
        raise ParameterError(f"strength {share:g} of {steps} steps leaves no step to run", "raise either")
    return steps - run


def require_noise_prediction(manifest: Manifest, what: str) -> None:
    """Raises ParameterError where `what` cannot work because the model predicts something else than noise."""
    if manifest.schedulers["config"].get("prediction_type", "epsilon") != "epsilon":
        raise ParameterError(f"{what} needs a model that predicts noise", "this one does not")


def repaint_plan(engine: Components, settings: RePaint, steps: int) -> RePaintPlan:
    """Raises ParameterError for steps it cannot do or a model that does not predict noise."""
    require_noise_prediction(engine.manifest, "RePaint")
    alphas = load_alphas_cumprod(engine.directory.path, engine.manifest.schedulers)
    return RePaintPlan(whole("steps", steps), settings.jump_length, settings.jump_count, alphas)


def load_source(batch: int, height: int, width: int, downscale: int, image: Any, mask: Any) -> Source | None:
    """Read and resize pictures and masks. Raises ParameterError where they cannot be read or counted."""
    if image is None:
        return None
    pixels = per_picture("image", load_pictures(image, height, width), batch)
    if mask is None:
        return Source(pixels, None, None)
    masks = load_masks(mask, height, width)
    warn_if_resized(image, mask)
    if len(masks) > 1:
        masks = per_picture("mask", masks, batch)
    hole = latent_mask(masks, downscale)
    if not hole.any((1, 2, 3)).all():
        raise ParameterError(f"the mask's hole is too small: no block of {downscale} pixels has its corner in it")
    return Source(pixels, masks, hole)


def prepare(
    engine: Components,
    task: Task,
    source: Source | None,
    streams: Sequence[NormalStream],
    shape: tuple[int, ...],
    latents: np.ndarray | None,
    table: SchedulerTable | None,
) -> Seen:
    """Draw the start noise, in the order in which diffusers' pipelines draw, and encode the pictures.

    Args:
        shape: of the latents [n,C,h,w].
        latents: start noise that was given; None: drawn here.
        table: of image to image.
    """
    if source is None or task is not Task.IMAGE_TO_IMAGE:
        noise = draw(streams, shape) if latents is None else latents
        if source is None:
            return Seen(noise)
        assert source.mask is not None and source.hole is not None
        # The grey that inpainting models were trained with would tint what RePaint keeps: a VAE normalises over the
        # whole picture.
        fill = np.float32(0.5) if task is Task.INPAINTING else _mean_known(source.pixels, source.mask)
        known = _encode(engine, np.where(source.mask.transpose(0, 2, 3, 1) > 0, fill, source.pixels), streams)
        if task is Task.REPAINT:
            return Seen(noise, known=known)
        holes = np.broadcast_to(source.hole, (len(known), *source.hole.shape[1:]))
        return Seen(noise, channels=np.concatenate([holes, known], 1))
    assert table is not None
    clean = _encode(engine, source.pixels, streams)
    noise = draw(streams, shape) if latents is None else latents
    alphas = load_alphas_cumprod(engine.directory.path, engine.manifest.schedulers)
    return Seen(table.add_noise(clean, noise, alphas))


def _mean_known(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[n,1,1,3]: mean colour of the pixels [n,H,W,3] that the mask [n or 1,1,H,W] leaves; grey where it leaves none."""
    kept = np.broadcast_to(1 - mask.transpose(0, 2, 3, 1), (*pixels.shape[:3], 1))
    count = kept.sum((1, 2), keepdims=True)
    mean = (pixels * kept).sum((1, 2), keepdims=True) / np.maximum(count, 1)
    return np.where(count > 0, mean, 0.5).astype(np.float32)


def _encode(engine: Components, pixels: np.ndarray, streams: Sequence[NormalStream]) -> np.ndarray:
    """A sample of the VAE's latents [n,C,h,w], as diffusers takes one."""
    mean, std = engine.encode_image(pixels)
    return (mean + std * draw(streams, mean.shape)).astype(np.float32)


def update_mask(source: Source | None, task: Task, repaint: RePaint) -> np.ndarray | None:
    """Where the main context's update looks: the hole [n or 1,1,h,w]; None without a mask."""
    if source is None or source.hole is None:
        return None
    return 1 - source.hole if task is Task.REPAINT and repaint.update_known else source.hole


def describe(task: Task, strength: float | None, repaint: RePaint) -> dict[str, Any]:
    """The settings of the task for JSON."""
    if task is Task.IMAGE_TO_IMAGE:
        return {"strength": float(DEFAULT_STRENGTH if strength is None else strength)}
    if task is Task.REPAINT:
        return {"repaint": dict(repaint.__dict__)}
    return {}


def per_picture(name: str, values: np.ndarray, batch: int) -> np.ndarray:
    """One for all or one each -> [batch,...]. Raises ParameterError for another number."""
    if len(values) not in (1, batch):
        raise ParameterError(f"{len(values)} {name}s were given for {batch} pictures", "give one, or one each")
    return np.broadcast_to(values, (batch, *values.shape[1:]))
