"""Attend-and-Excite: latents move until every subject is attended to somewhere.

Chefer et al., *Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image Diffusion Models*, SIGGRAPH 2023,
arXiv 2301.13826. For each subject s, A_s is the mean of its maps over heads and the layers that localise, without the
start token, normalised again by a softmax over the tokens, and smoothed. Before an evaluation of the first half

    loss = max over s of (1 - max over positions of A_s)        latents <- latents - alpha gradient(loss)

with alpha falling by a square root; at three steps this repeats until the loss is below a threshold. Every step needs a
forward and a backward pass of the UNet on the conditional rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ebca.bench.alignment.rivals.attention import Guide, Run


@dataclass(frozen=True)
class Excitation:
    """Settings; the defaults are the paper's and its code's but for the layers, which are those of `shapes`.

    scale: step size at the beginning; at the end of the run it would be scale * sqrt(last).
    until: share of the evaluations that are preceded by a step.
    thresholds: (share of the evaluations, largest attention that each subject must reach there).
    refinements: most repetitions for a threshold; 0 turns thresholds off.
    sharpness: factor of the shares before the second softmax.
    sigma: of the Gaussian that smooths maps, in cells of a 3x3 kernel.
    nouns: a subject is its noun, as in the paper, instead of all of its words.
    """

    scale: float = 20.0
    last: float = 0.5
    until: float = 0.5
    thresholds: tuple[tuple[float, float], ...] = ((0.0, 0.05), (0.2, 0.5), (0.4, 0.8))
    refinements: int = 20
    sharpness: float = 100.0
    sigma: float = 0.5
    nouns: bool = True
    layers: tuple[int, ...] = (0, 5, 6)


class AttendAndExcite(Guide):
    """Moves the latents of each image along the gradient of its loss; images do not affect each other."""

    def __init__(self, settings: Excitation | None = None) -> None:
        self.settings = settings or Excitation()
        self._maps: list[Tensor] | None = None

    def attend(self, run: Run, layer: int, scores: Tensor) -> Tensor:
        shares = scores.softmax(-1)
        if self._maps is not None and layer in self.settings.layers:
            self._maps.append(shares.mean(1))
        return shares

    def before(self, run: Run, evaluation: int, timestep: Tensor, latents: Tensor) -> Tensor:
        s = self.settings
        if evaluation >= s.until * run.evaluations:
            return latents
        alpha = s.scale * (1 - (1 - s.last) * evaluation / max(run.evaluations - 1, 1)) ** 0.5
        for share, threshold in s.thresholds:
            if s.refinements and evaluation == round(share * run.evaluations):
                latents = self._refined(run, timestep, latents, alpha, 1 - threshold)
        _, gradient = self._loss(run, timestep, latents, torch.arange(len(latents), device=latents.device))
        return latents - alpha * gradient

    def _refined(self, run: Run, timestep: Tensor, latents: Tensor, alpha: float, enough: float) -> Tensor:
        """Repeat steps of the images whose loss is above `enough`."""
        rows = torch.arange(len(latents), device=latents.device)
        for _ in range(self.settings.refinements):
            losses, gradient = self._loss(run, timestep, latents[rows], rows)
            open_ = losses > enough
            if not open_.any():
                break
            rows = rows[open_]
            latents = latents.index_add(0, rows, gradient[open_], alpha=-alpha)
        return latents

    def _loss(self, run: Run, timestep: Tensor, latents: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The losses [n] of these rows of the batch, and their gradients with respect to the latents."""
        self._maps = []
        with torch.enable_grad():
            inputs = latents.detach().requires_grad_(True)
            run.model.unet(inputs, timestep, encoder_hidden_states=run.captions.embeddings[rows])
            maps, self._maps = torch.stack(self._maps).mean(0), None  # [n,N,T]
            losses = self._losses(run, maps, rows)
            (gradient,) = torch.autograd.grad(losses.sum(), inputs)
        return losses.detach(), gradient

    def _losses(self, run: Run, maps: Tensor, rows: Tensor) -> Tensor:
        s, captions = self.settings, run.captions
        # Neither the start token nor the last one, which is padding here.
        shares = (maps[..., 1:-1] * s.sharpness).softmax(-1)
        words = (captions.nouns if s.nouns else captions.groups)[rows, :, 1:-1]  # [n,G,T-2]
        side = round(maps.shape[1] ** 0.5)
        of_subjects = (words @ shares.transpose(1, 2)).unflatten(-1, (side, side))
        peaks = _blurred(of_subjects, s.sigma).amax((2, 3))
        things = torch.arange(peaks.shape[1], device=peaks.device) < captions.counts[rows, None]
        return torch.where(things, 1 - peaks, -torch.inf).amax(1)


def _blurred(maps: Tensor, sigma: float) -> Tensor:
    """A Gaussian of 3x3 cells over maps [n,G,h,w], with the edges mirrored."""
    line = torch.exp(-(torch.arange(-1.0, 2.0, device=maps.device) ** 2) / (2 * sigma**2))
    line = line / line.sum()
    padded = F.pad(maps, (1, 1, 1, 1), mode="reflect")
    across = line[0] * padded[..., :-2] + line[1] * padded[..., 1:-1] + line[2] * padded[..., 2:]
    return line[0] * across[..., :-2, :] + line[1] * across[..., 1:-1, :] + line[2] * across[..., 2:, :]
