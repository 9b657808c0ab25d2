"""What is known of the latents before the UNet has run: the part that does not depend on a noise prediction.

Schedulers are linear, so the latents after evaluation i are known_i plus a sum of noise predictions. In a deterministic
scheduler known_i is a multiple of `start`. A stochastic one draws noise z_i in evaluation i, and with the weights of
`ebca.runtime.sampling.recurrence`

    known_i = sum_{k < K} a[i, k] known_{i-1-k} + sum_{k < M} c[i, k] z_{i-k}          known_{-1} = start

So a device gets all of them before its first evaluation, and needs no random numbers of its own.

z_i continues the streams that the initial latents came from, as in diffusers with one torch generator for all images,
or with a list of one per image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebca.runtime.noise import NormalStream, draw
from ebca.runtime.sampling.tables import SchedulerTable


def known_latents(
    table: SchedulerTable, start: NDArray[np.float32], streams: Sequence[NormalStream]
) -> Iterator[NDArray[np.float32]]:
    """known_0, known_1, ... of a stochastic table, float32 [n,...] each.

    Summed in float64, in the order of the C++ library. Noise is drawn as each value is asked for; what no weight uses
    at the end is not drawn.

    Args:
        start: [n,...] float32, already times init_noise_sigma.
        streams: one for all images, or one per image. They move on.
    """
    weights = table.recurrence
    latents, fresh = weights.of_latents.shape[1], weights.fresh
    drawn = draws(table)
    before: deque[NDArray[np.float64]] = deque([start.astype(np.float64)], maxlen=latents)
    noises: deque[NDArray[np.float32]] = deque(maxlen=fresh)
    term = np.empty(start.shape, dtype=np.float64)
    for i in range(table.evaluations):
        # Past the last draw that counts, every weight is zero.
        noises.appendleft(draw(streams, start.shape) if i < drawn else np.zeros_like(start))
        total = np.zeros(start.shape, dtype=np.float64)
        known: list[NDArray[Any]] = [*before, *noises]
        row = np.append(weights.of_latents[i, : len(before)], weights.of_fresh[i, : len(noises)])
        for array, weight in zip(known, row, strict=True):
            np.multiply(array, weight, out=term, dtype=np.float64)
            total += term
        before.appendleft(total)
        yield total.astype(np.float32)


def draws(table: SchedulerTable) -> int:
    """How many evaluations draw noise: all up to the last one whose noise has a weight."""
    evaluation, back = np.nonzero(table.recurrence.of_fresh)
    return int((evaluation - back).max(initial=-1)) + 1
