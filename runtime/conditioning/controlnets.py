"""Images that steer a generation through ControlNets: what a caller gives, checks, and what samplers take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebca.engines.contract.manifest import ControlNetSpec, Manifest
from ebca.errors import EngineError, ParameterError
from ebca.runtime.components import Components
from ebca.runtime.execution.residuals import ControlHint
from ebca.runtime.images.inputs import ImageLike, load_images
from ebca.runtime.sampling.controlnets import ControlInputs
from ebca.runtime.shown import Shown
from ebca.runtime.validation import each_image, finite

MOST = 16
"""ControlNets of one generation."""

_LARGEST_SCALE = 1000.0


@dataclass(frozen=True, repr=False)
class Control(Shown):
    """One image for one ControlNet.

    Attributes:
        image: what the ControlNet was trained to read, such as edges, white on black: one for all generated images, or
            one per image; resized to the session's size.
        scale: factor of what the ControlNet adds to the UNet, -1000 to 1000.
        start, end: the share of the evaluations, 0 to 1, at which it begins and ends to act.
        name: of the ControlNet in the engine; None: its only one.
    """

    image: ImageLike | Sequence[ImageLike]
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    name: str | None = None


@dataclass(frozen=True, repr=False)
class ControlNets(Shown):
    """Which images steer the generation beside its prompts.

    Attributes:
        control: one entry per image and ControlNet; their effects are added. The same ControlNet may have several.
    """

    control: Control | Sequence[Control] = ()

    @property
    def each(self) -> tuple[Control, ...]:
        """The entries."""
        return (self.control,) if isinstance(self.control, Control) else tuple(self.control)


def check(given: ControlNets, manifest: Manifest) -> None:
    """Check everything that needs no image.

    Raises:
        ParameterError: a wrong type or number, or a ControlNet that the engine does not have.
        EngineError: the engine has no ControlNets.
    """
    if not isinstance(given.control, Control | list | tuple):
        raise _wrong_type(given.control)
    for one in given.each:
        if not isinstance(one, Control):
            raise _wrong_type(one)
    if not given.each:
        return
    if not manifest.controlnets:
        raise EngineError(
            "this engine has no ControlNet, and `control` is given", "export it with `ebca-export --controlnet`"
        )
    if len(given.each) > MOST:
        raise ParameterError(f"control has {len(given.each)} entries", f"give at most {MOST}")
    for one in given.each:
        _spec(one, manifest.controlnets)
        if abs(finite("the scale of a control", one.scale)) > _LARGEST_SCALE:
            raise ParameterError(
                f"the scale of a control is {one.scale:g}",
                f"give a number from -{_LARGEST_SCALE:g} to {_LARGEST_SCALE:g}",
            )
        start, end = finite("the start of a control", one.start), finite("the end of a control", one.end)
        if not 0 <= start < end <= 1:
            raise ParameterError(
                f"a control starts at {start:g} and ends at {end:g}", "give shares of the run: 0 <= start < end <= 1"
            )


def load(given: ControlNets, batch: int, size: tuple[int, int]) -> list[np.ndarray]:
    """The images of each entry, [n,H,W,3] float32 in [0, 1].

    Args:
        given: as checked.
        batch: images of the generation.
        size: their (height, width) in pixels.

    Raises:
        ParameterError: one cannot be read, or a wrong number of images.
    """
    return [each_image("control images", load_images(one.image, *size), batch) for one in given.each]


def encode(given: ControlNets, images: Sequence[np.ndarray], components: Components, evaluations: int) -> ControlInputs:
    """Encode the images that `load` has read.

    Args:
        given: as checked.
        images: of each entry.
        components: the opened engine.
        evaluations: of the UNet (RePaint: steps).
    """
    hints = []
    for one, pixels in zip(given.each, images, strict=True):
        spec = _spec(one, components.manifest.controlnets)
        hints.append(ControlHint(spec.component, components.encode_hint(spec, pixels), float(one.scale)))
    return ControlInputs(hints, active(given, evaluations))


def active(given: ControlNets, evaluations: int) -> list[tuple[int, ...]]:
    """For each evaluation, which entries act: those whose start is not after its begin, and whose end is not before its
    end, as in diffusers."""
    return [
        tuple(
            index
            for index, one in enumerate(given.each)
            if evaluation / evaluations >= one.start and (evaluation + 1) / evaluations <= one.end
        )
        for evaluation in range(evaluations)
    ]


def _spec(one: Control, known: Mapping[str, ControlNetSpec]) -> ControlNetSpec:
    listed = ", ".join(known)
    if one.name is None:
        if len(known) == 1:
            return next(iter(known.values()))
        raise ParameterError(f"the engine has several ControlNets, and a control names none: {listed}", "give its name")
    if not isinstance(one.name, str) or one.name not in known:
        raise ParameterError(f"the engine has no ControlNet {one.name!r}", f"it has {listed}")
    return known[one.name]


def _wrong_type(value: Any) -> ParameterError:
    return ParameterError(
        f"control is of type {type(value).__name__}", "give ebca.Control(image, scale=1.0), or a list of them"
    )
