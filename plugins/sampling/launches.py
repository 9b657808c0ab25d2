"""How the kernels are launched: tensors in order, sizes, and grid. Needs neither Triton nor CUDA."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

from ebca.errors import ParameterError

BLOCK: Final = 256
# A thread's index is below this even in the last block, which may be wider than the work.
_COUNTED: Final = 2**31 - 1

_Shapes = Mapping[str, tuple[int, ...]]
_Sizes = tuple[dict[str, int], int]  # the kernel's integers, and the elements that it needs threads for

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
    "embed": ("step", "embeddings", "embedding_base", "embedding_stride", "time_embeddings"),
}  # fmt: skip


@dataclass(frozen=True)
class SamplingLaunch:
    """One launch: tensors in the order of the kernel's pointers, its integers in order, and the number of blocks."""

    tensors: tuple[str, ...]
    values: Mapping[str, int]
    blocks: int


def launch(kernel: str, shapes: Mapping[str, tuple[int, ...]], block: int = BLOCK) -> SamplingLaunch:
    """The launch of one kernel for arrays of these shapes (see STATE, UNET and EMBEDDINGS).

    Raises:
        ParameterError: a tensor with more elements than the kernels' 32-bit indices reach.
    """
    values, work = _SIZES[kernel](shapes)
    for name, shape in shapes.items():
        # The rows of these are found by pointers and 64-bit indices.
        count = prod(shape[1:]) if name in ("history", "controls") else prod(shape)
        if count > _COUNTED - block:
            raise ParameterError(
                f"sampling needs '{name}' with {count} elements, and its kernels count to 2^31 - 1",
                "make a smaller image, or fewer at once",
            )
    return SamplingLaunch(_TENSORS[kernel], values, -(-work // block))


def _begin(shapes: _Shapes) -> _Sizes:
    rows, contexts, tokens, _ = shapes["contexts"]
    image = prod(shapes["latents"][1:])
    values = {
        "images": shapes["latents"][0],
        "rows": rows,
        "image": image,
        "in_image": prod(shapes["sample"][1:]),
        "contexts": contexts,
        "tokens": tokens,
    }
    return values, max(rows * image, rows * contexts * tokens)


def _end(shapes: _Shapes) -> _Sizes:
    rows, contexts, tokens, width = shapes["contexts"]
    elements = prod(shapes["latents"])
    values = {
        "elements": elements,
        "room": shapes["history"][0],
        "guided": int(rows > shapes["latents"][0]),
        "rows": rows,
        "contexts": contexts,
        "words": tokens * width,
    }
    return values, max(elements, prod(shapes["contexts"]))


def _advance(_: _Shapes) -> _Sizes:
    return {}, 1


def _embed(shapes: _Shapes) -> _Sizes:
    words = prod(shapes["time_embeddings"])
    return {"words": words}, words


_SIZES: Final[Mapping[str, Callable[[_Shapes], _Sizes]]] = {
    "begin": _begin,
    "end": _end,
    "advance": _advance,
    "embed": _embed,
}
