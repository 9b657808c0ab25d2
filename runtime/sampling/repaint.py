"""RePaint (Lugmayr et al., 2022, arXiv 2201.09865): inpainting with a model that was not trained for it.

At every step the known part of the picture, noised to the level of that step, replaces what the model made of it. Going
back to more noise and down again (a jump) lets the two parts grow together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ebca.errors import ParameterError
from ebca.runtime.execution.control import ControlArrays
from ebca.runtime.noise import NormalStream, draw
from ebca.runtime.sampling.host import NoisePredictor, OnStep, StepInfo, check_latents, report


@dataclass(frozen=True)
class RePaintPlan:
    """Where the steps of RePaint go, as in diffusers' RePaintScheduler.

    Level k = 0..steps-1 is training timestep k * stride; level -1 is the clean picture.

    Attributes:
        steps: denoising levels.
        jump_length: levels that a jump goes back (j in the paper).
        jump_count: how often each stretch is denoised (r in the paper); 1: no jump.
        alphas_cumprod: [training timesteps] float64.
    """

    steps: int
    jump_length: int
    jump_count: int
    alphas_cumprod: np.ndarray

    def __post_init__(self) -> None:
        limit = len(self.alphas_cumprod)
        if not 1 <= self.steps <= limit:
            raise ParameterError(f"steps is {self.steps}", f"RePaint takes 1 to {limit}")
        for name in ("jump_length", "jump_count"):
            if getattr(self, name) < 1:
                raise ParameterError(f"{name} is {getattr(self, name)}", "give 1 or more")

    @property
    def stride(self) -> int:
        return len(self.alphas_cumprod) // self.steps

    def levels(self) -> Iterator[int]:
        """The level after level as it is visited; one that is above its predecessor was reached by adding noise."""
        left = dict.fromkeys(range(0, self.steps - self.jump_length, self.jump_length), self.jump_count - 1)
        level = self.steps
        while level > 0:
            level -= 1
            yield level
            if left.get(level, 0) > 0:
                left[level] -= 1
                for _ in range(self.jump_length):
                    level += 1
                    yield level

    def evaluations(self) -> int:
        """How often the UNet runs."""
        return sum(1 for _, denoise in self.moves() if denoise)

    def moves(self) -> Iterator[tuple[int, bool]]:
        """(level, True): denoise from that level to the one below. (level, False): add noise up to that level."""
        before = self.steps
        for level in self.levels():
            yield level, level < before
            before = level

    def alpha(self, level: int) -> float:
        """Cumulative product of the alphas at a level."""
        return float(self.alphas_cumprod[level * self.stride]) if level >= 0 else 1.0


def repaint(
    predictor: NoisePredictor,
    plan: RePaintPlan,
    start: np.ndarray,
    known: np.ndarray,
    hole: np.ndarray,
    controls: Sequence[ControlArrays],
    streams: Sequence[NormalStream],
    *,
    eta: float = 0.0,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Fill the hole. Returns the latents [n,C,h,w].

    Args:
        start: noise [n,C,h,w] of unit variance.
        known: [n,C,h,w] latents of the picture.
        hole: [n or 1,1,h,w], 1 where the picture is made anew.
        controls: one per level, the noisiest first; a level that is visited again uses its own again.
        streams: noise for the known part, one for all pictures or one each.
        eta: 0 as the authors use it (DDIM), 1 for the paper's ancestral steps.
        on_step: called after each evaluation; False cancels.

    Raises:
        CancelledError, NumericalError: as in `ebca.runtime.sampling.host.sample`.
    """
    latents, total, done = start.astype(np.float32), plan.evaluations(), 0
    predicted = np.empty_like(latents)
    hole = hole.astype(np.float64)
    before = plan.steps
    for level, denoise in plan.moves():
        if not denoise:
            latents = _add_noise(latents, plan, before, streams)
            before = level
            continue
        timestep = float(level * plan.stride)
        predictor.predict(latents, timestep, controls[plan.steps - 1 - level], out=predicted)
        noise = draw(streams, latents.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            latents = _step(
                latents, predicted, known, hole, noise, plan.alpha(level), plan.alpha(level - 1), level, eta
            )
        check_latents(latents, timestep)
        before = level
        report(on_step, StepInfo(done, total, timestep, latents, predictor.executor.contexts_out))
        done += 1
    return latents


def _step(
    latents: np.ndarray,
    predicted: np.ndarray,
    known: np.ndarray,
    hole: np.ndarray,
    noise: np.ndarray,
    alpha: float,
    alpha_below: float,
    level: int,
    eta: float,
) -> np.ndarray:
    """Equations 8a to 8c of the paper with DDIM's step (arXiv 2010.02502, equation 12) in place of DDPM's."""
    clean = (latents - np.sqrt(1 - alpha) * predicted.astype(np.float64)) / np.sqrt(alpha)
    deviation = eta * np.sqrt((1 - alpha_below) / (1 - alpha) * (1 - alpha / alpha_below))
    made = np.sqrt(alpha_below) * clean + np.sqrt(1 - alpha_below - deviation**2) * predicted
    if level > 0:
        made += deviation * noise
    given = np.sqrt(alpha_below) * known + np.sqrt(1 - alpha_below) * noise
    return (hole * made + (1 - hole) * given).astype(np.float32)


def _add_noise(latents: np.ndarray, plan: RePaintPlan, level: int, streams: Sequence[NormalStream]) -> np.ndarray:
    """From one level to the next noisier one, training timestep by training timestep."""
    result = latents.astype(np.float64)
    for timestep in range(level * plan.stride, (level + 1) * plan.stride):
        last = plan.alphas_cumprod[timestep - 1] if timestep else 1.0
        keep = plan.alphas_cumprod[timestep] / last
        result = np.sqrt(keep) * result + np.sqrt(1 - keep) * draw(streams, latents.shape)
    return result.astype(np.float32)
