"""Exclusive attention for a batch; plugins/exclusive_attention/README.md has the equations and their reasons."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ebca.bench.alignment.rivals.attention import Guide, Run
from ebca.bench.alignment.rivals.ebcu import Ebcu
from ebca.plugins.exclusive_attention import APART, WINDOW


@dataclass(frozen=True)
class Exclusion:
    """Settings of exclusive attention.

    away, boost: the strengths lambda and mu. window, apart: in sides of the map.
    after: the token after a subject's words is the subject's too, as in the runtime.
    begin, end: share of the evaluations from which on, and until which, there is a bias.
    biased, sources: layers that get the bias, and whose maps count; those of `shapes` that locate subjects.
    """

    away: float = 1.0
    boost: float = 1.5
    window: float = WINDOW
    apart: float = APART
    after: bool = True
    begin: float = 0.0
    end: float = 1.0
    biased: tuple[int, ...] = (0, 5, 6)
    sources: tuple[int, ...] = (5, 6)


class Exclusive(Guide):
    """Turns the maps of an evaluation into the bias of the next one, on the conditional rows."""

    def __init__(self, settings: Exclusion | None = None) -> None:
        self.settings = settings or Exclusion()
        self._averages: Tensor | None = None
        self._bias: Tensor | None = None

    def begin(self, run: Run) -> None:
        self._averages = self._bias = None

    def attend(self, run: Run, layer: int, scores: Tensor) -> Tensor:
        if layer in self.settings.sources:
            shares = scores[run.unconditional :].softmax(-1).mean(1)  # [n,N,T], before any bias
            self._note((shares @ self._tokens(run).transpose(1, 2)).transpose(1, 2))
        if self._bias is not None and layer in self.settings.biased:
            # [n,1,N,T]: the bias of a subject is that of its tokens.
            words = self._bias.transpose(1, 2) @ self._tokens(run)
            guided = scores[run.unconditional :] + words[:, None]
            scores = torch.cat([scores[: run.unconditional], guided])
        return scores.softmax(-1)

    def after(self, run: Run, evaluation: int) -> None:
        s = self.settings
        assert self._averages is not None
        self._bias = None
        if s.begin <= (evaluation + 1) / run.evaluations < s.end:
            self._bias = exclusive_bias(self._averages, run.captions.counts, s).flatten(2)

    def _tokens(self, run: Run) -> Tensor:
        return run.captions.subjects if self.settings.after else run.captions.groups

    def _note(self, maps: Tensor) -> None:
        side = round(maps.shape[-1] ** 0.5)
        smoothed = smooth(maps.unflatten(-1, (side, side)))
        self._averages = smoothed if self._averages is None else 0.5 * (self._averages + smoothed)


class Both(Exclusive):
    """Exclusive attention and the context update."""

    def __init__(self, settings: Exclusion | None = None, ebcu: Ebcu | None = None) -> None:
        super().__init__(settings)
        self._ebcu = ebcu or Ebcu()

    def step(self, run: Run, layer: int, q: Tensor, k: Tensor, scores: Tensor) -> Tensor:
        return self._ebcu.step(run, layer, q, k, scores)


def exclusive_bias(averages: Tensor, counts: Tensor, settings: Exclusion) -> Tensor:
    """The bias [n,G,h,w] from the averages [n,G,h,w] of n rows with counts[i] subjects."""
    G, h, w = averages.shape[1:]
    subjects = torch.arange(G, device=averages.device) < counts[:, None]  # [n,G]
    squared = _squared_distances(h, w, averages.device)
    centres = _centres(averages.flatten(2), subjects, squared < (settings.apart * min(h, w)) ** 2)
    inside = torch.exp(-squared / (2 * (settings.window * min(h, w)) ** 2))[centres]  # [n,G,N]
    peaks = averages.amax((2, 3)) * subjects
    strongest = peaks.amax(1, keepdim=True)
    weakness = torch.where(strongest > 0, (strongest - peaks) / strongest, 0.0)
    bias = settings.boost * weakness[..., None] - settings.away * (1 - inside)
    active = subjects & (counts[:, None] >= 2)
    return torch.where(active[..., None], bias, 0.0).unflatten(-1, (h, w))


def _centres(averages: Tensor, subjects: Tensor, near: Tensor) -> Tensor:
    """The centre of every subject [n,G]: strongest first, each keeps the others away."""
    n, G, N = averages.shape
    rows = torch.arange(n, device=averages.device)
    # Less than any map: a place near a centre; and less than that: the places of a subject that has one.
    worth = torch.where(subjects[..., None], averages, -2.0)
    centres = torch.zeros(n, G, dtype=torch.long, device=averages.device)
    for turn in range(G):
        best = worth.flatten(1).argmax(1)
        group, cell = best // N, best % N
        waiting = turn < subjects.sum(1)
        centres[rows, group] = torch.where(waiting, cell, centres[rows, group])
        worth = torch.where(near[cell][:, None] & (worth > -2), -1.0, worth)
        worth[rows, group] = -2.0
    return centres


def smooth(maps: Tensor) -> Tensor:
    """(1 2 1) x (1 2 1) / 16 over the last two axes of maps [n,G,h,w], with the edges repeated."""
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    across = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 16


def _squared_distances(height: int, width: int, device: torch.device) -> Tensor:
    """Between any two cells, [N,N]."""
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    squared = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    return squared.float().to(device)
