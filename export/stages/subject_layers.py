"""Which cross-attention layers tell where a subject is, and give it a place: those of one coarse size.

Maps of fine layers show edges and texture, and the coarsest ones hardly any place. In a small model of this family,
layers of 8x8 among 16, 8 and 4 locate subjects, and those before the middle of the UNet much worse than those after it;
for Stable Diffusion, 16x16 is what Attend-and-Excite (arXiv 2301.13826) and others use.
"""

from ebca.engines.contract import dims
from ebca.engines.contract.manifest import SubjectLayers
from ebca.errors import ParameterError
from ebca.export.graph.segments import OpCall, Split
from ebca.export.graph.traced_unet import TracedUNet
from ebca.export.stages.context import Context

LARGEST_SIDE = 24
"""A quarter of the latents' side at 512 and 768 pixels: 16, 24."""

_AFTER_MIDDLE = "up_blocks."


def subject_layers(context: Context, traced: TracedUNet, cut: Split) -> SubjectLayers | None:
    """The layers of the largest side up to LARGEST_SIDE at the native size, or of the side that the options name.

    Returns:
        None for a UNet without cross-attention layers.

    Raises:
        ParameterError: the options name a side that no layer has.
    """
    calls = {call.layer: call for segment in cut.segments for call in segment.ops}
    sides = {index: _side(call, traced.sample_size) for index, call in sorted(calls.items())}
    if not sides:
        return None
    wanted = context.options.subject_side
    if wanted is None:
        coarse = [side for side in sides.values() if side <= LARGEST_SIDE]
        wanted = max(coarse) if coarse else min(sides.values())
    elif wanted not in sides.values():
        known = ", ".join(str(side) for side in sorted(set(sides.values())))
        raise ParameterError(
            f"no cross-attention layer has the side {wanted}", f"choose one of {known}, or leave it out"
        )
    biased = tuple(index for index, side in sides.items() if side == wanted)
    later = tuple(index for index in biased if traced.layers[index].name.startswith(_AFTER_MIDDLE))
    return SubjectLayers(biased, later or biased)


def _side(call: OpCall, native: int) -> int:
    sizes = {"height": native, "width": native}
    return min(dims.evaluate(call.height, sizes), dims.evaluate(call.width, sizes))
