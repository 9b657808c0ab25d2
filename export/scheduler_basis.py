"""A diffusers scheduler, run on basis vectors: what it computes then are the weights of a scheduler table.

A scheduler's latents are sums of `start`, the noise predictions e_j so far, and the noise z_j that it has drawn so
far. With `start` = basis 0, e_j = basis j + 1 and z_j = basis m + 1 + j, the result of its `step` *is* the row of
weights. Nothing here knows a scheduler's formulas.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMInverseScheduler
from numpy.typing import NDArray

from ebca.export.spacing import Spacing


@dataclass(frozen=True)
class Run:
    """What diffusers does in m evaluations.

    timesteps, input_scale   [m]
    init_noise_sigma         unit-variance noise times this is `start`
    rows                     [m + 1, m + 1]: the weights of start, e_0 .. in x_{-1}, x_0 ..
    fresh                    [m + 1, m]: the weights of z_0 .. there; [m + 1, 0] if nothing is drawn
    """

    timesteps: NDArray[np.float64]
    input_scale: NDArray[np.float64]
    init_noise_sigma: float
    rows: NDArray[np.float64]
    fresh: NDArray[np.float64]


def run_on_basis(scheduler: Any, spacing: Spacing, eta: float | None = None) -> Run:
    """Run a diffusers scheduler.

    eta: argument of its `step`, None if it takes none.

    Raises ValueError, IndexError or TypeError as diffusers does, ValueError for noise that is not drawn once per
    evaluation.
    """
    spacing.apply(scheduler)
    _in_double(scheduler)
    _remember_noise_levels(scheduler)
    timesteps: list[int | float] = scheduler.timesteps.tolist()
    stepped = timesteps
    if isinstance(scheduler, DDIMInverseScheduler):
        # diffusers' inverse goes from t - r to t, the one EBCA was published with from t to t + r: the same step,
        # named by its other end. The last point starts no step.
        timesteps = timesteps[:-1]
        ratio = scheduler.config.num_train_timesteps // spacing.count
        stepped = [t + ratio for t in timesteps]

    m = len(timesteps)
    init_noise_sigma = float(scheduler.init_noise_sigma)
    # [2 m + 1, 1, 2 m + 1]: `start`, the noise predictions, fresh noise. The axis of one: UniPC wants batch and
    # channels.
    basis = [row.as_subclass(_StaysDouble) for row in torch.eye(2 * m + 1, dtype=torch.float64).unsqueeze(1)]
    one = torch.ones((), dtype=torch.float64)
    draws = _Draws(basis[m + 1 :])
    latents = basis[0]
    input_scale = np.empty(m)
    rows = np.zeros((m + 1, 2 * m + 1))
    rows[0, 0] = 1
    options = {} if eta is None else {"eta": eta}
    with draws.instead_of_random_numbers(scheduler):
        for i, t in enumerate(stepped):
            draws.evaluation = i
            input_scale[i] = float(scheduler.scale_model_input(one, t))
            latents = scheduler.step(basis[i + 1], t, latents, return_dict=False, **options)[0]
            latents = latents.as_subclass(_StaysDouble)
            rows[i + 1] = latents[0].numpy()
    fresh = rows[:, m + 1 :] if draws.drawn else np.zeros((m + 1, 0))
    return Run(np.asarray(timesteps, dtype=np.float64), input_scale, init_noise_sigma, rows[:, : m + 1], fresh)


class _Draws:
    """Hands out a basis vector where a scheduler draws noise: z_i in evaluation i. The runtime draws once per
    evaluation too, until the last one that does."""

    def __init__(self, vectors: Sequence[torch.Tensor]) -> None:
        self._vectors = vectors
        self.evaluation = 0
        self.drawn = 0

    def draw(self, *_: Any, **__: Any) -> torch.Tensor:
        """Takes the place of diffusers' `randn_tensor`."""
        if self.evaluation != self.drawn:
            raise ValueError(f"draw {self.drawn + 1} of noise is in evaluation {self.evaluation + 1}")
        self.drawn += 1
        return self._vectors[self.evaluation]

    @contextmanager
    def instead_of_random_numbers(self, scheduler: Any) -> Iterator[None]:
        module, name = sys.modules[type(scheduler).__module__], "randn_tensor"
        if hasattr(scheduler, "noise_sampler"):
            scheduler.noise_sampler = _BrownianNoise(self.draw)
        if not hasattr(module, name):
            yield
            return
        before = getattr(module, name)
        setattr(module, name, self.draw)
        try:
            yield
        finally:
            setattr(module, name, before)


class _BrownianNoise:
    """Increments of a Brownian motion over the noise levels, each divided by the root of its length. The two of a step
    begin at the same level, so the second contains the first; each call draws what is new.

    diffusers samples the same motion with torchsde, whose tree of random numbers is another one than the stream of a
    seed. So images follow the same distribution as diffusers', and differ from those of the same seed.
    """

    def __init__(self, draw: Callable[[], torch.Tensor]) -> None:
        self._draw = draw
        self._last: tuple[float, float, torch.Tensor] | None = None

    def __call__(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        begin, end = float(sigma), float(sigma_next)
        noise = self._draw()
        if self._last is not None and self._last[0] == begin:
            _, middle, before = self._last
            noise = before + math.sqrt(middle - end) * noise
        else:
            noise = math.sqrt(begin - end) * noise
        self._last = begin, end, noise
        return noise / math.sqrt(begin - end)


class _StaysDouble(torch.Tensor):
    """A float64 tensor that ignores casts: Euler and DPM-Solver "upcast" latents to float32 inside `step`.

    Results of operations are plain tensors: handing the class on doubles the time of a step.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    def to(self, *args: Any, **kwargs: Any) -> _StaysDouble:
        return self


def _remember_noise_levels(scheduler: Any) -> None:
    """Let multistep solvers of diffusers compute alpha and sigma of each noise level once: a third of their time.

    Levels are found by identity, so this is for one call of `set_timesteps`.
    """
    method = "_sigma_to_alpha_sigma_t"
    if hasattr(scheduler, method):
        scheduler.sigmas = list(scheduler.sigmas)
        setattr(scheduler, method, functools.cache(getattr(type(scheduler), method).__get__(scheduler)))


def _in_double(scheduler: Any) -> None:
    """Keep diffusers' float32 constants but do the arithmetic on them in float64.

    The noise levels keep the values that diffusers rounds them to, so tables and the float32 loop share them.
    """
    if not hasattr(scheduler, "sigmas"):
        for buffer in ("alphas_cumprod", "final_alpha_cumprod", "initial_alpha_cumprod"):
            if hasattr(scheduler, buffer):
                setattr(scheduler, buffer, getattr(scheduler, buffer).double())
    else:
        # Not alphas_cumprod: these schedulers derive sigmas from it in set_timesteps, in float32.
        scheduler.sigmas = scheduler.sigmas.double()
