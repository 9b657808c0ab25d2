"""RePaint (Lugmayr et al., 2022, arXiv 2201.09865): inpainting with a model that was not trained for it.

After every step, the part of the image outside the hole is replaced by the original, noised to the noise level of that
step. Jumps back to a higher noise level, followed by denoising, make the two parts consistent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ebca.runtime.noise import NormalStream, draw
from ebca.runtime.sampling.sampler import Evaluation
from ebca.runtime.schema import parameters as rules
from ebca.runtime.validation import at_least_one, finite, flag


@dataclass(frozen=True)
class RePaint:
    """Settings of RePaint, which inpaints with a model that was not trained for inpainting.

    Attributes:
        jump_length: steps that a jump goes back (j in the paper).
        jump_count: how often each stretch of steps is denoised (r in the paper); 1: no jumps.
        eta: 0 for deterministic steps, as the authors use it; 1 for the paper's random steps.
        update_known: compute the context update outside the hole instead of inside, as the authors' code does by
            mistake: it passes the inverted mask.

    Raises:
        ParameterError: a value that is out of range.
    """

    jump_length: int = rules.REPAINT.jump_length
    jump_count: int = rules.REPAINT.jump_count
    eta: float = rules.REPAINT.eta
    update_known: bool = rules.REPAINT.update_known

    def __post_init__(self) -> None:
        at_least_one("jump_length", self.jump_length)
        at_least_one("jump_count", self.jump_count)
        flag("update_known", self.update_known)
        if not 0 <= finite("eta", self.eta) <= 1:
            raise rules.ETA_RANGE.error(value=self.eta)


@dataclass(frozen=True)
class RePaintSchedule:
    """The sequence of noise levels that RePaint visits, as in diffusers' RePaintScheduler.

    Level k = 0..steps-1 is training timestep k * stride; level -1 is the clean image.

    Attributes:
        steps: number of noise levels.
        jump_length: levels that a jump goes back (j in the paper).
        jump_count: how often each stretch is denoised (r in the paper); 1: no jumps.
        alphas_cumprod: [training timesteps] float64.

    Raises:
        ParameterError: more steps than training timesteps, a jump below 1, or too many moves.
    """

    steps: int
    jump_length: int
    jump_count: int
    alphas_cumprod: np.ndarray

    def __post_init__(self) -> None:
        limit = len(self.alphas_cumprod)
        if not 1 <= self.steps <= limit:
            raise rules.REPAINT_STEPS.error(value=self.steps, limit=limit)
        at_least_one("jump_length", self.jump_length)
        at_least_one("jump_count", self.jump_count)
        jumps = len(self._jumps_from()) * (self.jump_count - 1)
        if self.steps + 2 * self.jump_length * jumps > rules.MAX_MOVES:
            raise rules.REPAINT_MOVES.error(value=self.jump_count, limit=rules.MAX_MOVES)

    def _jumps_from(self) -> range:
        """The levels from which noise is added again, `jump_count` - 1 times each."""
        return range(0, self.steps - self.jump_length, self.jump_length)

    @property
    def stride(self) -> int:
        """Training timesteps per noise level."""
        return len(self.alphas_cumprod) // self.steps

    def levels(self) -> Iterator[int]:
        """The noise levels in the order of the visits. A level above its predecessor is reached by adding noise."""
        left = dict.fromkeys(self._jumps_from(), self.jump_count - 1)
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
        """Number of evaluations."""
        return sum(1 for _, denoise in self.moves() if denoise)

    def moves(self) -> Iterator[tuple[int, bool]]:
        """(level, True): denoise from that level to the one below. (level, False): add noise to reach that level."""
        before = self.steps
        for level in self.levels():
            yield level, level < before
            before = level

    def alpha(self, level: int) -> float:
        """Cumulative product of the alphas at a level; 1 for the clean image."""
        return float(self.alphas_cumprod[level * self.stride]) if level >= 0 else 1.0


class RePaintStepper:
    """Regenerates the hole; see `ebca.runtime.sampling.sampler.Stepper`. Jumps add noise before the next evaluation.

    Args:
        schedule: the noise levels to visit.
        clean: [n,C,h,w] clean latents of the image.
        hole: [n or 1,1,h,w], 1 where the image is regenerated.
        streams: sources of noise, one for all images or one per image.
        eta: 0 for DDIM steps, as the authors use it; 1 for the paper's ancestral steps.
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

    def known(self, latents: np.ndarray) -> None:
        return None

    @property
    def timesteps(self) -> Sequence[float]:
        return [float(level * self._schedule.stride) for level in range(self._schedule.steps)]

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
        # One control per level: repeated visits share it.
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
    """From one level to the next noisier one, one training timestep at a time."""
    result = latents.astype(np.float64)
    for timestep in range(level * schedule.stride, (level + 1) * schedule.stride):
        last = schedule.alphas_cumprod[timestep - 1] if timestep else 1.0
        keep = schedule.alphas_cumprod[timestep] / last
        result = np.sqrt(keep) * result + np.sqrt(1 - keep) * draw(streams, latents.shape)
    return result.astype(np.float32)
