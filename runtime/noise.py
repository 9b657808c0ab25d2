"""`torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` without PyTorch.

A seed from another Stable Diffusion tool then gives the same image here. PyTorch's CPU generator is mt19937. The low 32
bits of the seed initialise it by Knuth's method, like numpy's legacy seeding. Its 32-bit words x become normal values
as follows (ATen/native/cpu/DistributionTemplates.h, ATen/core/DistributionsHelper.h):

    16 values or more    u = (x mod 2^24) 2^-24 in float32; in blocks of 16, for j < 8
                             r = sqrt(-2 ln(1 - u_j)),  a = 2 pi u_{j+8}
                             out_j = r cos a,  out_{j+8} = r sin a
                         if the size is not a multiple of 16, the last 16 values are drawn again
    fewer                u = (x0 2^32 + x1 mod 2^53) 2^-53 in float64; each pair (u1, u2) gives two values
                             r = sqrt(-2 ln(1 - u2)),  a = 2 pi u1
                             out = r cos a, then r sin a
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ebca.errors import ParameterError
from ebca.runtime.schema import parameters as rules

_BLOCK = 16


def randn(shape: int | Sequence[int], seed: int) -> NDArray[np.float32]:
    """The first values of `NormalStream(seed)`."""
    return NormalStream(seed).randn(shape)


class NormalStream:
    """A stream of standard normal values, within 1e-6 of those from a PyTorch CPU generator over any number of draws.

    Args:
        seed: -2^63 to 2^64 - 1, as in PyTorch. As there, seeds that are equal modulo 2^32 give the same values.

    Raises:
        ParameterError: a seed that PyTorch would refuse.
    """

    def __init__(self, seed: int) -> None:
        self._words = _Words(seed)
        # PyTorch keeps the second value of its last pair for the next draw of fewer than 16.
        self._spare: float | None = None

    def randn(self, shape: int | Sequence[int]) -> NDArray[np.float32]:
        """The next values, float32 [*shape]. Raises ParameterError for a shape that PyTorch would refuse."""
        sizes = _checked_shape(shape)
        total = int(np.prod(sizes, dtype=np.int64))
        if total < _BLOCK:
            return self._few(total).reshape(sizes)
        values = np.empty(total, dtype=np.float32)
        uniforms = self._words.uniform24(total)
        whole = total - total % _BLOCK
        values[:whole] = _box_muller(uniforms[:whole])
        if whole != total:
            values[-_BLOCK:] = _box_muller(self._words.uniform24(_BLOCK))
        return values.reshape(sizes)

    def _few(self, total: int) -> NDArray[np.float32]:
        kept = [] if self._spare is None else [self._spare]
        made = _scalar_normals(self._words, total - len(kept[:total]))
        values = np.concatenate([kept, made])
        self._spare = float(values[total]) if len(values) > total else None
        return values[:total].astype(np.float32)


def draw(streams: Sequence[NormalStream], shape: Sequence[int]) -> NDArray[np.float32]:
    """The next values for n images, float32 [n,...], from one stream for all images or one per image."""
    if len(streams) == 1:
        return streams[0].randn(tuple(shape))
    return np.concatenate([stream.randn((1, *shape[1:])) for stream in streams])


class _Words:
    """The stream of 32-bit words of one seed."""

    def __init__(self, seed: int) -> None:
        try:
            number = operator.index(seed)
        except TypeError:
            raise rules.WHOLE_NUMBER.error(field="seed", value=repr(seed)) from None
        if not -(2**63) <= number < 2**64:
            raise rules.SEED_RANGE.error(value=number)
        self._generator = np.random.RandomState(number % 2**32)

    def take(self, count: int) -> NDArray[np.uint32]:
        # numpy consumes a word even for 0 bytes.
        return np.frombuffer(self._generator.bytes(4 * count) if count else b"", dtype="<u4")

    def uniform24(self, count: int) -> NDArray[np.float32]:
        return (self.take(count) & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)

    def uniform53(self, count: int) -> NDArray[np.float64]:
        high, low = self.take(2 * count).astype(np.uint64).reshape(count, 2).T
        return ((high << np.uint64(32) | low) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53


def _box_muller(uniforms: NDArray[np.float32]) -> NDArray[np.float32]:
    """[16 n] uniform float32 -> [16 n] normal float32. Float32 as in PyTorch: the rounding of the angle matters."""
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * _rounded(np.log, np.float32(1) - blocks[:, 0]))
    angle = np.float32(2 * np.pi) * blocks[:, 1]
    return np.stack([radius * _rounded(np.cos, angle), radius * _rounded(np.sin, angle)], axis=1).reshape(-1)


def _rounded(function: np.ufunc, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """`function` correctly rounded to float32. Float32 libraries differ in the last bit, and the C++ library must make
    the same noise."""
    return np.asarray(function(x.astype(np.float64)), np.float32)


def _scalar_normals(words: _Words, count: int) -> NDArray[np.float64]:
    """At least `count` values, since they come in pairs."""
    u1, u2 = words.uniform53(2 * ((count + 1) // 2)).reshape(-1, 2).T
    radius = np.sqrt(-2.0 * np.log1p(-u2))
    angle = 2.0 * np.pi * u1
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)


def _checked_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = (operator.index(shape),) if not isinstance(shape, Sequence) else tuple(map(operator.index, shape))
    except TypeError:
        raise ParameterError(f"shape is {shape!r}", "give whole numbers") from None
    if any(size < 0 for size in sizes):
        raise ParameterError(f"shape is {sizes}", "give sizes of 0 or more")
    return sizes
