"""`GenerateRequest`: all parameters of a generation, in groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ebca.runtime.conditioning.controlnets import ControlNets
from ebca.runtime.conditioning.prompts import Conditioning
from ebca.runtime.conditioning.sizes import SizeConditions
from ebca.runtime.conditioning.subjects import Subjects
from ebca.runtime.conditioning.timeline import Guidance
from ebca.runtime.images.inputs import ImageLike
from ebca.runtime.request import names
from ebca.runtime.sampling.repaint import RePaint
from ebca.runtime.schema import parameters as rules
from ebca.runtime.shown import Shown


@dataclass(frozen=True, repr=False)
class ImageInputs(Shown):
    """Images to start from.

    Attributes:
        image: one for all generated images, or one per image; resized to the session's size. Transparent pixels are
            composited on white, with a warning.
        mask: white pixels are regenerated, or transparent ones if the mask has only one colour; one for all images, or
            one per image. Forms: see `ebca.runtime.images.inputs.load_masks`.
        strength: of image to image, and of inpainting by a model trained for it: the share of the steps to run, above 0
            and up to 1. None: 0.8; 1 for inpainting.
        image_guidance_scale: of InstructPix2Pix: how much the result follows the image, 1 or more. None: 1.5.
        repaint: settings of RePaint; None: the defaults.
        composite: copy the pixels of `image` back outside the mask.
    """

    image: ImageLike | Sequence[ImageLike] | None = None
    mask: ImageLike | Sequence[ImageLike] | None = None
    strength: float | None = rules.GENERATE.strength
    image_guidance_scale: float | None = None
    repaint: RePaint | None = None
    composite: bool = rules.GENERATE.composite


@dataclass(frozen=True, repr=False)
class Telemetry(Shown):
    """What to record during the generation.

    Attributes:
        energies: record the energies of every evaluation and layer.
        attention_maps: record the mean attention to each token.
    """

    energies: bool = False
    attention_maps: bool = False


@dataclass(frozen=True, repr=False)
class GenerateRequest(Shown):
    """All parameters of a generation. Which of them are given decides the task, see
    `ebca.runtime.request.validate.Task`.

    Attributes:
        conditioning: prompts or embeddings.
        guidance: classifier-free guidance, context update, and editing prompts.
        sizes: what Stable Diffusion XL is told about sizes.
        subject: things of the prompt that get a place of their own.
        image_inputs: images to start from.
        controlnets: images that steer the generation through ControlNets.
        telemetry: what to record.
        steps: scheduler steps. None: the engine's default, 50 unless its checkpoint was distilled to fewer.
        scheduler: one of the engine's, such as "euler_ancestral" or "dpmpp_2m_karras". None: the engine's default,
            which is the checkpoint's own; for image to image with strength below 1, "ddim" if the default is a
            multistep scheduler, because those cannot start at an intermediate timestep.
        seed: of the initial latents, which equal those of torch.randn on the CPU: one for all images, or one per image.
            None: random.
        latents: initial latents [n,C,h,w] of unit variance, or the latents that `Session.invert` found.
        output: "pil", "np" ([n,H,W,3] float32 in [0, 1]), or "latents".
        vae_tiling: encode and decode images that are larger than the model's size in tiles, which takes less memory,
            see `ebca.runtime.tiling`.
    """

    conditioning: Conditioning = field(default_factory=Conditioning)
    guidance: Guidance = field(default_factory=Guidance)
    sizes: SizeConditions = field(default_factory=SizeConditions)
    subject: Subjects = field(default_factory=Subjects)
    image_inputs: ImageInputs = field(default_factory=ImageInputs)
    controlnets: ControlNets = field(default_factory=ControlNets)
    telemetry: Telemetry = field(default_factory=Telemetry)
    steps: int | None = rules.GENERATE.steps
    scheduler: str | None = rules.GENERATE.scheduler
    seed: int | Sequence[int] | None = rules.GENERATE.seed
    latents: np.ndarray | None = None
    output: str = "pil"
    vae_tiling: bool = False

    @classmethod
    def of(cls, **values: Any) -> "GenerateRequest":
        """Create a request from flat fields, with the same names as the parameters of `Session.generate`.

        Raises:
            ParameterError: a field that does not exist; the error is a TypeError too.
        """
        parts: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        own: dict[str, Any] = {}
        if missing := [name for name in values if name not in FIELD_PARTS]:
            raise names.unknown(missing, "a request", FIELD_PARTS, names.FIELDS)
        for name, value in values.items():
            part = FIELD_PARTS[name]
            (own if part is None else parts[part])[name] = value
        # For these, None means the default.
        for name in ("negative_prompt", "token_weights", "clip_skip"):
            if name in parts["conditioning"] and parts["conditioning"][name] is None:
                del parts["conditioning"][name]
        return cls(**{part: kind(**parts[part]) for part, kind in PARTS.items()}, **own)

    def values(self) -> dict[str, Any]:
        """The flat fields of all parts; `GenerateRequest.of(**request.values())` equals the request."""
        return {
            name: getattr(self if part is None else getattr(self, part), name) for name, part in FIELD_PARTS.items()
        }


PARTS: Mapping[str, type] = {
    "conditioning": Conditioning,
    "guidance": Guidance,
    "sizes": SizeConditions,
    "subject": Subjects,
    "image_inputs": ImageInputs,
    "controlnets": ControlNets,
    "telemetry": Telemetry,
}

FIELD_PARTS: Mapping[str, str | None] = {
    **{one.name: part for part, kind in PARTS.items() for one in fields(kind)},
    **{one.name: None for one in fields(GenerateRequest) if one.name not in PARTS},
}
"""Maps each field to its part of the request; None: the request itself."""
