"""Regularisation of DDIM inversion, which finds the noise that an image comes from.

It keeps the noise predictions close to independent standard normal values (Parmar et al., Zero-shot Image-to-Image
Translation, 2023, arXiv 2302.03027, section 3.2), as the authors of EBCA use it.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ebca.runtime.sampling.table_stepper import Adjust
from ebca.runtime.schema import parameters as rules

_SMALLEST = 8
_TINY = 1e-7

# The size of a channel -> how far to shift it.
_Shift = Callable[[int], int]


@dataclass(frozen=True)
class NoiseRegularization:
    """Gradient steps on each noise prediction: off-centre auto-correlation, and divergence from a standard normal.

    Attributes:
        rounds: how often both terms are applied.
        rolls: auto-correlation steps per round, each with new shifts.
        auto_correlation, kl: step sizes; `auto_correlation` is divided by `rolls`.
        seed: of the random shifts.
        shifts: the shifts to use instead of random ones, in order. One value per channel and pyramid level serves rows
            and columns. Every image uses the same shifts.
    """

    rounds: int = rules.REGULARIZE.rounds
    rolls: int = rules.REGULARIZE.rolls
    auto_correlation: float = rules.REGULARIZE.auto_correlation
    kl: float = rules.REGULARIZE.kl
    seed: int = rules.REGULARIZE.seed
    shifts: tuple[int, ...] | None = None

    def start(self, images: int) -> Adjust:
        """A function that regularises the noise predictions [n,C,h,w] of one inversion in place, image by image.

        It raises ParameterError if `shifts` runs out.
        """
        shifts = [self._shifts() for _ in range(images)]

        def adjust(noise: np.ndarray) -> None:
            for one, its_shifts in zip(noise, shifts, strict=True):
                one[...] = self._regularized(one.astype(np.float64), its_shifts)

        return adjust

    def _shifts(self) -> Iterator[_Shift]:
        if self.shifts is None:
            rng = np.random.default_rng(self.seed)
            while True:
                yield lambda size: int(rng.integers(max(size // 2, 1)))
        for shift in self.shifts:
            yield functools.partial(_given, shift)
        raise rules.SHIFTS_TOO_FEW.error(count=len(self.shifts))

    def _regularized(self, noise: np.ndarray, shifts: Iterator[_Shift]) -> np.ndarray:
        for _ in range(self.rounds):
            for _ in range(self.rolls if self.auto_correlation else 0):
                gradient = np.stack([_auto_correlation_gradient(channel, shifts) for channel in noise])
                noise = noise - self.auto_correlation / self.rolls * gradient
            if self.kl:
                noise = noise - self.kl * _kl_gradient(noise)
        return noise


def _given(shift: int, size: int) -> int:
    """A given shift; it does not depend on the size."""
    return int(shift)


def _auto_correlation_gradient(channel: np.ndarray, shifts: Iterator[_Shift]) -> np.ndarray:
    """d/dx [h,w] of the sum over pyramid levels of mean(x * shifted x)^2, with one shift per level for both axes."""
    shift = next(shifts)(channel.shape[0])
    gradient = np.zeros_like(channel)
    for axis in (0, 1):
        mean = (channel * np.roll(channel, shift, axis)).mean()
        gradient += 2 * mean / channel.size * (np.roll(channel, shift, axis) + np.roll(channel, -shift, axis))
    if channel.shape[0] > _SMALLEST and channel.shape[1] > 1:
        below = _auto_correlation_gradient(_halved(channel), shifts)
        gradient[: 2 * below.shape[0], : 2 * below.shape[1]] += np.repeat(np.repeat(below / 4, 2, 0), 2, 1)
    return gradient


def _halved(channel: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 blocks; an odd last row or column is dropped."""
    h, w = (side // 2 for side in channel.shape)
    return channel[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean((1, 3))


def _kl_gradient(noise: np.ndarray) -> np.ndarray:
    """d/dx of var + mean^2 - 1 - ln(var): twice the KL divergence of a normal distribution from the standard one."""
    centred = noise - noise.mean()
    variance = noise.var(ddof=1)
    return 2 * centred / (noise.size - 1) * (1 - 1 / (variance + _TINY)) + 2 * noise.mean() / noise.size
