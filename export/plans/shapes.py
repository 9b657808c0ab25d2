"""What plans are built for: a library, image shapes, GPUs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ebca.engines.backends.tensorrt_library import RTX
from ebca.engines.contract.plans import Range
from ebca.errors import ParameterError

PIXELS_PER_LATENT = 8
"""Pixels along each side that one latent of Stable Diffusion stands for. Sides of images are multiples of it."""

LARGEST_SIDE = 1 << 16
"""Pixels along each side that no image has more of."""

ROWS_PER_IMAGE = 2
"""Rows of a UNet call per image: guidance evaluates an unconditional and a conditional one."""

# The main prompt and edits together. The axis of contexts is a range in every plan: k, v and the contexts are small,
# and a plan for each number of them would store the weights once more.
MAX_CONTEXTS = 4


@dataclass(frozen=True)
class ImageShape:
    """Images at once, and their height and width in pixels: each as (smallest, best, largest)."""

    images: Range
    height: Range
    width: Range


@dataclass(frozen=True)
class PlanOptions:
    """What to build.

    Attributes:
        library: "tensorrt-rtx" or "tensorrt".
        shapes: one set of plans for each.
        capabilities: compute capabilities, as `ebca.export.plans.tensorrt.check_capabilities` returns them.
        max_contexts: the main prompt and edits together that plans take.
    """

    library: str
    shapes: tuple[ImageShape, ...] = ()
    capabilities: tuple[str, ...] = ()
    max_contexts: int = MAX_CONTEXTS

    @property
    def takes_plugins(self) -> bool:
        """Whether plans can contain energy cross attention as a plugin."""
        return self.library != RTX

    def validate(self, spell: Callable[[str], str] = str) -> None:
        """Raise ParameterError for a wrong value; for `spell` see `ExportOptions.validate`."""
        if self.max_contexts < 1:
            raise ParameterError(f"{spell('max_contexts')} is {self.max_contexts}", "give 1 or more")


def parse_shape(text: str) -> tuple[int, int, int]:
    """(images, height, width) of "1x512x768". Raises ParameterError."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ParameterError(f"shape '{text}' is not IMAGESxHEIGHTxWIDTH", "give one like 1x512x512")
    images, height, width = (int(part) for part in parts)
    if images < 1 or not all(_is_side(side) for side in (height, width)):
        raise ParameterError(
            f"shape '{text}' needs one image or more, of sides that are multiples of {PIXELS_PER_LATENT}, at most "
            f"{LARGEST_SIDE}"
        )
    return images, height, width


def check_side(name: str, pixels: int) -> None:
    """Raise ParameterError unless `pixels` is a positive multiple of `PIXELS_PER_LATENT` that an image can have."""
    if not _is_side(pixels):
        raise ParameterError(f"{name} is {pixels}", f"give a multiple of {PIXELS_PER_LATENT}, at most {LARGEST_SIDE}")


def _is_side(pixels: int) -> bool:
    return PIXELS_PER_LATENT <= pixels <= LARGEST_SIDE and pixels % PIXELS_PER_LATENT == 0


def fixed(text: str) -> ImageShape:
    """One size only, see `parse_shape`."""
    return ImageShape(*((n, n, n) for n in parse_shape(text)))


def dynamic(texts: Sequence[str]) -> ImageShape:
    """A range from three shapes: smallest, best, largest. Raises ParameterError if they do not grow."""
    low, best, high = (parse_shape(text) for text in texts)
    for name, size in zip(("images", "heights", "widths"), zip(low, best, high, strict=True), strict=True):
        if not size[0] <= size[1] <= size[2]:
            raise ParameterError(f"the {name} {', '.join(map(str, size))} of a range do not grow", "give MIN BEST MAX")
    return ImageShape(*zip(low, best, high, strict=True))
