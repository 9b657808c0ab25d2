"""Scheduler steps from a table: one weighted sum per evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ebca.errors import ParameterError
from ebca.runtime.noise import NormalStream
from ebca.runtime.sampling.known import known_latents
from ebca.runtime.sampling.sampler import Evaluation
from ebca.runtime.sampling.tables import SchedulerTable

Adjust = Callable[[np.ndarray], None]
"""Changes a guided noise prediction [n,C,h,w] in place before the scheduler step."""


class TableStepper:
    """A table and the noise history of one run; see `ebca.runtime.sampling.sampler.Stepper`. Not thread-safe.

    Args:
        table: the scheduler's.
        shape: of the latents [n,C,h,w].
        adjust: changes each noise prediction before the scheduler step.
        streams: what the initial latents were drawn from; a stochastic table draws on.
    """

    def __init__(
        self,
        table: SchedulerTable,
        shape: Sequence[int],
        adjust: Adjust | None = None,
        streams: Sequence[NormalStream] = (),
    ) -> None:
        self._table = table
        self._adjust = adjust
        self._streams = streams
        self._known: Iterator[np.ndarray] | None = None
        self.shape = tuple(int(n) for n in shape)
        self._noises: NDArray[np.float32] = np.zeros((table.evaluations, *self.shape), dtype=np.float32)
        self._initial = self._latents = np.zeros(self.shape, dtype=np.float32)
        self._sum = np.empty(self.shape, dtype=np.float64)
        self._term = np.empty(self.shape, dtype=np.float64)

    @property
    def total(self) -> int:
        return self._table.evaluations

    @property
    def table(self) -> SchedulerTable | None:
        return self._table if self._adjust is None else None

    @property
    def timesteps(self) -> Sequence[float]:
        return sorted({float(timestep) for timestep in self._table.timesteps})

    def start(self, latents: np.ndarray) -> None:
        self._initial = self._latents = self.scaled(latents)
        self._known = self.known(latents)

    def known(self, latents: np.ndarray) -> Iterator[np.ndarray] | None:
        return known_latents(self._table, self.scaled(latents), self._streams) if self._table.stochastic else None

    def evaluation(self, index: int) -> Evaluation:
        return Evaluation(float(self._table.timesteps[index]), index, self.model_input(index, self._latents))

    def step(self, index: int, noise: np.ndarray) -> np.ndarray:
        if self._adjust is not None:
            self._adjust(noise)
        self._noises[index] = noise
        initial = self._initial if self._known is None else next(self._known)
        self._latents = self.combine(index, initial, self._noises)
        return self._latents

    def scaled(self, noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit-variance noise [*shape] -> the initial latents of this scheduler, float32 [*shape]."""
        return np.multiply(noise, self._table.init_noise_sigma, dtype=np.float64).astype(np.float32)

    def model_input(self, index: int, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """The UNet's input at an evaluation: input_scale[index] * latents, float32 [*shape]."""
        return np.multiply(latents, np.float32(self._table.input_scale[index]))

    def combine(self, index: int, initial: NDArray[np.float32], noises: NDArray[np.float32]) -> NDArray[np.float32]:
        """The latents after an evaluation, float32 [*shape].

        Args:
            initial: [*shape] float32, already times init_noise_sigma; of a stochastic table, what is known of the
                latents (see `ebca.runtime.sampling.known`).
            noises: [at least index + 1, *shape] float32, the guided noise predictions so far.

        Raises:
            ParameterError: an evaluation or a shape that does not fit.
        """
        row = self._table.weights(index)
        if initial.shape != self.shape or noises.shape[1:] != self.shape or len(noises) <= index:
            raise ParameterError(
                f"initial latents {initial.shape} and noises {noises.shape} do not fit evaluation {index}",
                f"give latents {self.shape} and at least {index + 1} noise predictions of that shape",
            )
        # Terms of a multistep scheduler cancel each other, so they are summed in float64.
        total, term = self._sum, self._term
        np.multiply(initial, row[0], out=total, dtype=np.float64)
        for noise, weight in zip(noises, row[1:], strict=False):
            np.multiply(noise, weight, out=term, dtype=np.float64)
            total += term
        return total.astype(np.float32)
