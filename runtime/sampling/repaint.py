"""RePaint (Lugmayr et al., 2022, arXiv 2201.09865): inpainting with a model that was not trained for it.

At every step the known part of the picture, noised to the level of that step, replaces what the model made of it. Going
back to more noise and down again (a jump) lets the two parts grow together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ebca.errors import ParameterError
from ebca.runtime.noise import NormalStream, draw
from ebca.runtime.sampling.sampler import Evaluation
from ebca.runtime.validation import finite, whole


@dataclass(frozen=True)
class RePaint:
    """Settings of RePaint, which inpaints with a model that was not trained for it.

    Attributes:
        jump_length: steps that a jump goes back (j in the paper).
        jump_count: how often each stretch is denoised (r in the paper); 1: no jumps.
        eta: 0 as the authors use it, 1 for the paper's random steps.
        update_known: compute the context update on the known region instead of the hole, as the authors' code does by
            mistake: it passes the inverted mask.
    """

    jump_length: int = 10
    jump_count: int = 10
    eta: float = 0.0
    update_known: bool = False

    def __post_init__(self) -> None:
        for name in ("jump_length", "jump_count"):
            if whole(name, getattr(self, name)) < 1:
                raise ParameterError(f"{name} is {getattr(self, name)}", "give 1 or more")
        if not 0 <= finite("eta", self.eta) <= 1:
            raise ParameterError(f"eta is {self.eta}", "give a number from 0 to 1")


@dataclass(frozen=True)
class RePaintSchedule:
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


class RePaintStepper:
    """Fills the hole; see `ebca.runtime.sampling.sampler.Stepper`. Jumps add noise before the next evaluation.

    Args:
        schedule: where the steps go.
        clean: [n,C,h,w] latents of the image.
        hole: [n or 1,1,h,w], 1 where the image is regenerated.
        streams: noise for the kept part, one for all images or one each.
        eta: 0 as the authors use it (DDIM), 1 for the paper's ancestral steps.
    """

    table = None

    def __init__(
        self,
        schedule: RePaintSchedule,
        clean: np.ndarray,
        hole: np.ndarray,
        streams: Sequence[NormalStream],
        eta: float = 0.0,
    ) -> None:
        self._schedule = schedule
        self._clean = clean
        self._hole = hole.astype(np.float64)
        self._streams = streams
        self._eta = eta
        self._moves = schedule.moves()
        self._level = schedule.steps
        self._latents = np.zeros_like(clean, dtype=np.float32)

    @property
    def total(self) -> int:
        return self._schedule.evaluations()

    def start(self, latents: np.ndarray) -> None:
        self._moves = self._schedule.moves()
        self._level = self._schedule.steps
        self._latents = latents.astype(np.float32)

    def evaluation(self, index: int) -> Evaluation:
        for level, denoise in self._moves:
            if denoise:
                self._level = level
                break
            self._latents = _add_noise(self._latents, self._schedule, self._level, self._streams)
            self._level = level
        schedule = self._schedule
        # A level that is visited again uses its control again.
        return Evaluation(float(self._level * schedule.stride), schedule.steps - 1 - self._level, self._latents)

    def step(self, index: int, noise: np.ndarray) -> np.ndarray:
        """Equations 8a to 8c of the paper with DDIM's step (arXiv 2010.02502, equation 12) in place of DDPM's."""
        level, fresh = self._level, draw(self._streams, self._latents.shape)
        alpha, alpha_below = self._schedule.alpha(level), self._schedule.alpha(level - 1)
        clean = (self._latents - np.sqrt(1 - alpha) * noise.astype(np.float64)) / np.sqrt(alpha)
        deviation = self._eta * np.sqrt((1 - alpha_below) / (1 - alpha) * (1 - alpha / alpha_below))
        made = np.sqrt(alpha_below) * clean + np.sqrt(1 - alpha_below - deviation**2) * noise
        if level > 0:
            made += deviation * fresh
        kept = np.sqrt(alpha_below) * self._clean + np.sqrt(1 - alpha_below) * fresh
        self._latents = (self._hole * made + (1 - self._hole) * kept).astype(np.float32)
        return self._latents


def _add_noise(
    latents: np.ndarray, schedule: RePaintSchedule, level: int, streams: Sequence[NormalStream]
) -> np.ndarray:
    """From one level to the next noisier one, training timestep by training timestep."""
    result = latents.astype(np.float64)
    for timestep in range(level * schedule.stride, (level + 1) * schedule.stride):
        last = schedule.alphas_cumprod[timestep - 1] if timestep else 1.0
        keep = schedule.alphas_cumprod[timestep] / last
        result = np.sqrt(keep) * result + np.sqrt(1 - keep) * draw(streams, latents.shape)
    return result.astype(np.float32)
