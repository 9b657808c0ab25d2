"""Symbolic tensor dimensions, in a language that is easy to evaluate in any host.

A dimension is an integer or a product of names and integers joined by `*`. The names:

    batch, contexts, tokens      sizes of the UNet call
    height, width                latent size (image size / 8)
    height_K, width_K            the same after K halvings, each rounded up: ceil(height / 2^K)

So the number of positions of a cross-attention layer after two downsamplings is `height_2*width_2`.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from ebca.engines.contract import limits
from ebca.errors import EngineError

Dim = int | str

NAMES = ("batch", "contexts", "tokens", "height", "width")
"""The sizes of a UNet call."""

_FACTOR = re.compile(r" *(?:(?P<number>[0-9]{1,20})|(?P<name>[a-z]+)(?:_(?P<halvings>[0-9]{1,20}))?) *")


class Product(NamedTuple):
    """A dimension, taken apart. Equal ones have the same value at all sizes.

    constant: product of the integers.
    factors: (name, halvings), sorted.
    """

    constant: int
    factors: tuple[tuple[str, int], ...]

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.factors}


@lru_cache(maxsize=4096)
def parse(dim: Dim) -> Product:
    """Take a dimension apart.

    Raises:
        EngineError: it is not in this module's language, or an integer is 0 or above `limits.DIMENSION`.
    """
    constant, factors = 1, []
    for part in str(dim).split("*"):
        found = _FACTOR.fullmatch(part)
        if found is None or int(found["halvings"] or 0) > limits.HALVINGS:
            raise EngineError(f"dimension {str(dim)[:60]!r} is neither a number nor a product of names and numbers")
        constant *= int(found["number"] or 1)
        if not 1 <= constant <= limits.DIMENSION:
            raise EngineError(f"dimension {str(dim)[:60]!r} is not from 1 to {limits.DIMENSION}")
        if found["name"]:
            factors.append((found["name"], int(found["halvings"] or 0)))
    return Product(constant, tuple(sorted(factors)))


def check(dim: Dim, names: Collection[str] = NAMES) -> None:
    """Raise EngineError if a dimension is not in this module's language, or uses other names than these."""
    for name in sorted(parse(dim).names - set(names)):
        raise _unknown(dim, name, names)


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
    value, factors = parse(dim)
    for name, halvings in factors:
        if name not in sizes:
            raise _unknown(dim, name, sizes)
        value *= -(-sizes[name] // 2**halvings)
    return value


def shape(dims: Sequence[Dim], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The concrete shape of a tensor, see `evaluate`."""
    return tuple(evaluate(dim, sizes) for dim in dims)


def same(one: Sequence[Dim], other: Sequence[Dim]) -> bool:
    """Whether two shapes are the same at all sizes."""
    return [parse(dim) for dim in one] == [parse(dim) for dim in other]


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


def _unknown(dim: Dim, name: str, known: Iterable[str]) -> EngineError:
    return EngineError(f"dimension '{dim}' uses the unknown name '{name}'", f"known: {', '.join(sorted(known))}")
