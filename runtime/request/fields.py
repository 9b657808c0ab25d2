"""One request: everything that a generation is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ebca.errors import ParameterError
from ebca.runtime.conditioning.prompts import Conditioning
from ebca.runtime.conditioning.timeline import Guidance
from ebca.runtime.images.inputs import ImageLike
from ebca.runtime.sampling.repaint import RePaint
from ebca.runtime.schema import parameters as rules


@dataclass(frozen=True)
class ImageInputs:
    """Images to start from.

    Attributes:
        image: one for all images or one each, resized to the session's size.
        mask: white pixels are regenerated; one for all images or one each.
        strength: of image to image, above 0 to 1 (default 0.8): the share of the steps that is run.
        repaint: settings of RePaint.
        composite: put the pixels of `image` back outside the mask.
    """

    image: ImageLike | Sequence[ImageLike] | None = None
    mask: ImageLike | Sequence[ImageLike] | None = None
    strength: float | None = rules.GENERATE.strength
    repaint: RePaint | None = None
    composite: bool = rules.GENERATE.composite


@dataclass(frozen=True)
class Telemetry:
    """What is recorded beside the images.

    Attributes:
        energies: the energies of every evaluation and layer.
        attention_maps: the mean attention to each token.
    """

    energies: bool = False
    attention_maps: bool = False


@dataclass(frozen=True)
class GenerateRequest:
    """Everything that a generation is asked for. The task follows from what is given, see `Task`.

    Attributes:
        steps: scheduler steps.
        scheduler: "pndm", "ddim", "euler", "dpmpp_2m", "unipc"; None: the engine's default, but "ddim" for image to
            image with strength below 1, because a multistep scheduler cannot start at an intermediate timestep.
        seed: initial latents as torch.randn on the CPU makes them; a sequence has one per image. None: random.
        latents: initial latents [n,C,h,w] of unit variance instead of a seed, or what `Session.invert` found.
        output: "pil", "np" ([n,H,W,3] float32 in [0, 1]), or "latents".
    """

    conditioning: Conditioning = field(default_factory=Conditioning)
    guidance: Guidance = field(default_factory=Guidance)
    image_inputs: ImageInputs = field(default_factory=ImageInputs)
    telemetry: Telemetry = field(default_factory=Telemetry)
    steps: int = rules.GENERATE.steps
    scheduler: str | None = rules.GENERATE.scheduler
    seed: int | Sequence[int] | None = rules.GENERATE.seed
    latents: np.ndarray | None = None
    output: str = "pil"

    @classmethod
    def of(cls, **values: Any) -> "GenerateRequest":
        """A request from the fields of all parts by their own names, as `Session.generate` takes them.

        Raises:
            ParameterError: a field that does not exist.
        """
        parts: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        own: dict[str, Any] = {}
        for name, value in values.items():
            if name not in FIELD_PARTS:
                raise ParameterError(f"a request has no field '{name}'", f"the fields are {', '.join(FIELD_PARTS)}")
            part = FIELD_PARTS[name]
            (own if part is None else parts[part])[name] = value
        # None stands for the default where that is a value.
        if parts["conditioning"].get("negative_prompt", "") is None:
            del parts["conditioning"]["negative_prompt"]
        if parts["conditioning"].get("token_weights", {}) is None:
            del parts["conditioning"]["token_weights"]
        return cls(**{part: kind(**parts[part]) for part, kind in PARTS.items()}, **own)

    def values(self) -> dict[str, Any]:
        """All fields of all parts by their own names; `of(**values())` is the same request."""
        return {
            name: getattr(self if part is None else getattr(self, part), name) for name, part in FIELD_PARTS.items()
        }


PARTS: Mapping[str, type] = {
    "conditioning": Conditioning,
    "guidance": Guidance,
    "image_inputs": ImageInputs,
    "telemetry": Telemetry,
}

FIELD_PARTS: Mapping[str, str | None] = {
    **{one.name: part for part, kind in PARTS.items() for one in fields(kind)},
    **{one.name: None for one in fields(GenerateRequest) if one.name not in PARTS},
}
"""Field -> the part of a request that it belongs to; None: the request itself."""
