"""Symbolic tensor dimensions, in a language that is easy to evaluate in any host.

A dimension is an integer or a product of names and integers joined by `*`. The names:

    batch, contexts, tokens      sizes of the UNet call
    height, width                latent size (image size / 8)
    height_K, width_K            the same after K halvings, each rounded up: ceil(height / 2^K)

So the number of positions of a cross-attention layer after two downsamplings is `height_2*width_2`.
"""

from collections.abc import Iterable, Mapping, Sequence

from ebca.errors import EngineError

Dim = int | str


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The value of one dimension.

    Args:
        dim: an integer or an expression of this module's language.
        sizes: values of the base names (`batch`, `height`, ...).

    Raises:
        EngineError: the expression uses a name that is not in `sizes`.
    """
    if isinstance(dim, int):
        return dim
    product = 1
    for factor in dim.split("*"):
        product *= _factor(factor.strip(), dim, sizes)
    return product


def shape(dims: Sequence[Dim], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The concrete shape of a tensor, see `evaluate`."""
    return tuple(evaluate(dim, sizes) for dim in dims)


def fixed(shapes: Iterable[Sequence[Dim]], sizes: Mapping[str, int]) -> dict[str, int]:
    """The value of every symbolic dimension of some shapes, by its text. Raises EngineError as `evaluate`."""
    return {dim: evaluate(dim, sizes) for shape in shapes for dim in shape if isinstance(dim, str)}


def sizes_of(shapes: Iterable[Sequence[Dim]], values: Iterable[Sequence[int]]) -> dict[str, int]:
    """The sizes at which some tensors have the shapes `values`. Dimensions are numbers, names, or `number*name`.

    Raises:
        EngineError: two tensors disagree, or a shape does not fit.
    """
    sizes: dict[str, int] = {}
    for shape, value in zip(shapes, values, strict=True):
        for dim, length in zip(shape, value, strict=True):
            factor, _, name = str(dim).rpartition("*")
            multiple = int(factor or 1)
            fits = name == str(length) if isinstance(dim, int) else length % multiple == 0
            if not fits or (isinstance(dim, str) and sizes.setdefault(name, length // multiple) * multiple != length):
                raise EngineError(f"a tensor has shape {list(value)}, and the engine expects {list(shape)}")
    return sizes


def _factor(factor: str, dim: str, sizes: Mapping[str, int]) -> int:
    if factor.isdecimal():
        return int(factor)
    if factor in sizes:
        return sizes[factor]
    base, _, halvings = factor.rpartition("_")
    if base in sizes and halvings.isdecimal():
        return -(-sizes[base] // 2 ** int(halvings))
    raise EngineError(f"dimension '{dim}' uses the unknown name '{factor}'", f"known: {', '.join(sorted(sizes))}")
