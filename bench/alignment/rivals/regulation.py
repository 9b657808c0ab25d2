"""Attention Regulation: each layer edits its own scores so that all subjects' words are attended to alike.

Zhang et al., *Enhancing Semantic Fidelity in Text-to-Image Synthesis: Attention Regulation in Diffusion Models*, ECCV
2024, arXiv 2403.06381. At chosen layers an edit of the scores of the subjects' words is optimised by gradient steps,
without a backward pass through the UNet. The edit is a sum of Gaussians at fixed centres with weights w, per head and
word; A_t is the map of word t after the edit, a softmax over all tokens, among K words of subjects:

    loss = mean_t (quantile_0.9(A_t) - 0.9)^2 + delta mean_t (mean(A_t) - min(1, 0.2 K) / K)^2 + epsilon mean w^2

The edit is averaged with that of the evaluation before, and fades. The start and the end token keep their shares.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ebca.bench.alignment.rivals.attention import Guide, Run


@dataclass(frozen=True)
class Regulation:
    """Settings; the defaults are the code's of the paper but for the layers, which are those of `shapes`.

    until: share of the evaluations with an edit. iterations, rate: of the gradient steps on w.
    delta, epsilon: weights of the terms of the loss.
    memory: share of the edit of the evaluation before. fade: factor of the edit per evaluation.
    initial: w before the first step; the paper's code draws numbers from 0 to 1, whose mean this is.
    """

    until: float = 0.5
    iterations: int = 20
    rate: float = 100.0
    delta: float = 80.0
    epsilon: float = 0.09
    memory: float = 0.25
    fade: float = 0.99
    initial: float = 0.5
    layers: tuple[int, ...] = (0, 5, 6)


class AttentionRegulation(Guide):
    """Edits the scores of the conditional rows; heads and images do not affect each other."""

    def __init__(self, settings: Regulation | None = None) -> None:
        self.settings = settings or Regulation()
        self._evaluation = 0
        self._before: dict[int, Tensor] = {}
        self._words = torch.empty(0)

    def begin(self, run: Run) -> None:
        self._evaluation, self._before = 0, {}
        # Positions of the subjects' words, [n,K]; scenes of one kind have equally many.
        marked = run.captions.groups.sum(1)
        self._words = marked.nonzero()[:, 1].view(len(marked), -1)

    def attend(self, run: Run, layer: int, scores: Tensor) -> Tensor:
        s = self.settings
        shares = scores.softmax(-1)
        if layer not in s.layers or self._evaluation >= s.until * run.evaluations:
            return shares
        guided = scores[run.unconditional :]
        at = self._words[:, None, None].expand(*guided.shape[:3], -1)  # [n,H,N,K]
        edit = self._edit(guided, at)
        used = s.memory * self._before.get(layer, edit) + (1 - s.memory) * edit
        self._before[layer] = edit
        edited = guided.scatter_add(-1, at, s.fade**self._evaluation * used).softmax(-1)
        plain = shares[run.unconditional :]
        ends = run.captions.ends[:, None, None, None].expand(*edited.shape[:3], 1)
        edited = edited.scatter(-1, ends, plain.gather(-1, ends))
        edited = torch.cat([plain[..., :1], edited[..., 1:]], -1)
        return torch.cat([shares[: run.unconditional], edited])

    def after(self, run: Run, evaluation: int) -> None:
        self._evaluation = evaluation + 1

    def _edit(self, scores: Tensor, at: Tensor) -> Tensor:
        """The edit [n,H,N,K] with the smallest loss of those on the way."""
        s = self.settings
        n, heads, positions, _ = scores.shape
        patterns = _gaussians(round(positions**0.5), scores.device)  # [C,N]
        weights = torch.full((n, heads, len(patterns), at.shape[-1]), s.initial, device=scores.device)
        best = torch.full((n, heads), torch.inf, device=scores.device)
        found = torch.zeros(at.shape, device=scores.device)
        for _ in range(s.iterations):
            with torch.enable_grad():
                weights.requires_grad_(True)
                edit = patterns.T @ weights
                losses = self._losses(scores.scatter_add(-1, at, edit).softmax(-1).gather(-1, at), weights)
                (gradient,) = torch.autograd.grad(losses.sum(), weights)
            better = losses.detach() < best
            best = torch.where(better, losses.detach(), best)
            found = torch.where(better[..., None, None], edit.detach(), found)
            weights = (weights - s.rate * gradient).detach()
        return found

    def _losses(self, maps: Tensor, weights: Tensor) -> Tensor:
        """[n,H] of maps [n,H,N,K]."""
        s, words = self.settings, maps.shape[-1]
        high = (_quantile(maps, 0.9) - 0.9).square().mean(-1)
        alike = (maps.mean(2) - min(1.0, 0.2 * words) / words).square().mean(-1)
        return high + s.delta * alike + s.epsilon * weights.square().mean((2, 3))


def _quantile(maps: Tensor, share: float) -> Tensor:
    """Over the positions of maps [n,H,N,K], between the two nearest values; [n,H,K]."""
    # `torch.quantile` refuses large inputs.
    ordered = maps.sort(2).values
    place = share * (maps.shape[2] - 1)
    low = int(place)
    high = min(low + 1, maps.shape[2] - 1)
    return torch.lerp(ordered[:, :, low], ordered[:, :, high], place - low)


def _gaussians(side: int, device: torch.device) -> Tensor:
    """Gaussians [C,side^2] with their centres two standard deviations apart, which are a sixteenth of the side."""
    sigma = max(side // 16, 1)
    y, x = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    centres = range(2 * sigma, side, 2 * sigma)
    maps = [torch.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * sigma**2)) for a in centres for b in centres]
    return torch.stack(maps).flatten(1).to(device)
