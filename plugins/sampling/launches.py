"""How the kernels are launched: tensors in order, sizes, and grid. Needs neither Triton nor CUDA."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

BLOCK: Final = 256

_TENSORS: Final = {
    "begin": (
        "step", "latents", "input_scale", "timesteps", "controls",
        "sample", "timestep", "weights", "gamma_attn", "gamma_norm",
    ),
    "end": (
        "step", "noise", "start", "coefficients", "guidance_scale", "carry", "contexts_out",
        "history", "latents", "contexts", "bad",
    ),
    "advance": ("step",),
}  # fmt: skip


@dataclass(frozen=True)
class SamplingLaunch:
    """One launch: tensors in the order of the kernel's pointers, its integers in order, and the number of blocks."""

    tensors: tuple[str, ...]
    values: Mapping[str, int]
    blocks: int


def launch(kernel: str, shapes: Mapping[str, tuple[int, ...]], block: int = BLOCK) -> SamplingLaunch:
    """The launch of one kernel for arrays of these shapes (see STATE and UNET)."""
    images = shapes["latents"][0]
    image = prod(shapes["latents"][1:])
    rows, contexts, tokens, width = shapes["contexts"]
    if kernel == "begin":
        values = {
            "pictures": images,
            "rows": rows,
            "picture": image,
            "in_picture": prod(shapes["sample"][1:]),
            "contexts": contexts,
            "tokens": tokens,
        }
        work = max(rows * image, rows * contexts * tokens)
    elif kernel == "end":
        values = {
            "elements": images * image,
            "room": shapes["history"][0],
            "guided": int(rows > images),
            "rows": rows,
            "contexts": contexts,
            "words": tokens * width,
        }
        work = max(images * image, prod(shapes["contexts"]))
    else:
        values, work = {}, 1
    return SamplingLaunch(_TENSORS[kernel], values, -(-work // block))
