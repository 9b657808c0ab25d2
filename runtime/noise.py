"""`torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` without PyTorch.

A seed from any Stable Diffusion tool then makes the same picture here. PyTorch's CPU generator is mt19937
with Knuth's initialisation of the low 32 bits of the seed, which is also numpy's legacy seeding; on top of
its 32-bit words x come (ATen/native/cpu/DistributionTemplates.h, ATen/core/DistributionsHelper.h):

    16 values and more   u = (x mod 2^24) 2^-24 in float32; in blocks of 16, for j < 8
                             r = sqrt(-2 ln(1 - u_j)),  a = 2 pi u_{j+8}
                             out_j = r cos a,  out_{j+8} = r sin a
                         the last 16 values are drawn anew when the size is no multiple of 16
    fewer                u = (x0 2^32 + x1 mod 2^53) 2^-53 in float64; one pair (u1, u2) makes two values
                             r = sqrt(-2 ln(1 - u2)),  a = 2 pi u1
                             out = r cos a, then r sin a
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ebca.errors import ParameterError

_BLOCK = 16


def randn(shape: int | Sequence[int], seed: int) -> NDArray[np.float32]:
    """The first values of `NormalStream(seed)`."""
    return NormalStream(seed).randn(shape)


class NormalStream:
    """Standard normal values, draw after draw, as one PyTorch CPU generator gives them within 1e-6.

    seed: -2^63 to 2^64 - 1, as PyTorch takes it; seeds equal modulo 2^32 give the same values (there too).

    Raises ParameterError for a seed PyTorch would refuse.
    """

    def __init__(self, seed: int) -> None:
        self._words = _Words(seed)
        # PyTorch keeps the second value of its last pair for the next draw of fewer than 16.
        self._spare: float | None = None

    def randn(self, shape: int | Sequence[int]) -> NDArray[np.float32]:
        """The next values, float32 [*shape]. Raises ParameterError for a shape PyTorch would refuse."""
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
    """The next values for n pictures [n,...], float32: from one stream for all of them, or from one each."""
    if len(streams) == 1:
        return streams[0].randn(tuple(shape))
    return np.concatenate([stream.randn((1, *shape[1:])) for stream in streams])


class _Words:
    """The stream of 32-bit words of one seed."""

    def __init__(self, seed: int) -> None:
        try:
            number = operator.index(seed)
        except TypeError:
            raise ParameterError(f"seed is {seed!r}", "it must be a whole number") from None
        if not -(2**63) <= number < 2**64:
            raise ParameterError(f"seed is {number}", "it must lie between -2^63 and 2^64 - 1")
        self._generator = np.random.RandomState(number % 2**32)

    def take(self, count: int) -> NDArray[np.uint32]:
        # numpy consumes a word even for no bytes at all.
        return np.frombuffer(self._generator.bytes(4 * count) if count else b"", dtype="<u4")

    def uniform24(self, count: int) -> NDArray[np.float32]:
        return (self.take(count) & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)

    def uniform53(self, count: int) -> NDArray[np.float64]:
        high, low = self.take(2 * count).astype(np.uint64).reshape(count, 2).T
        return ((high << np.uint64(32) | low) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53


def _box_muller(uniforms: NDArray[np.float32]) -> NDArray[np.float32]:
    """[16 n] uniform float32 -> [16 n] normal float32; in float32 as PyTorch: the angle's rounding shows."""
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * _rounded(np.log, np.float32(1) - blocks[:, 0]))
    angle = np.float32(2 * np.pi) * blocks[:, 1]
    return np.stack([radius * _rounded(np.cos, angle), radius * _rounded(np.sin, angle)], axis=1).reshape(-1)


def _rounded(function: np.ufunc, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """`function` to the nearest float32: libraries differ in the last bit of their float32 forms, and hosts in other
    languages make the same noise."""
    return np.asarray(function(x.astype(np.float64)), np.float32)


def _scalar_normals(words: _Words, count: int) -> NDArray[np.float64]:
    """At least `count` values: they come in pairs."""
    u1, u2 = words.uniform53(2 * ((count + 1) // 2)).reshape(-1, 2).T
    radius = np.sqrt(-2.0 * np.log1p(-u2))
    angle = 2.0 * np.pi * u1
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)


def _checked_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = (operator.index(shape),) if not isinstance(shape, Sequence) else tuple(map(operator.index, shape))
    except TypeError:
        raise ParameterError(f"shape is {shape!r}", "it must be whole numbers") from None
    if any(size < 0 for size in sizes):
        raise ParameterError(f"shape is {sizes}", "no size may be negative")
    return sizes
