"""The ceiling: every subject is told its place, read from the base image, or a free one if it is missing there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ebca.bench.alignment.rivals.attention import Guide, Run
from ebca.bench.alignment.scenes import SIZE
from ebca.errors import ParameterError


@dataclass(frozen=True)
class Told:
    """Settings. away: how strongly a subject is kept inside its place. boost: added to its words inside.

    territory: a place is all that is nearest to the subject; else a Gaussian around its centre of `window` sides.
    """

    away: float = 1e4
    boost: float = 0.0
    territory: bool = True
    window: float = 0.15
    until: float = 1.0
    biased: tuple[int, ...] = (0, 5, 6)


class Oracle(Guide):
    """A constant bias on the words of each subject, from `Run.places`."""

    def __init__(self, settings: Told | None = None) -> None:
        self.settings = settings or Told()
        self._evaluation = 0
        self._biases: dict[int, Tensor] = {}

    def begin(self, run: Run) -> None:
        if run.places is None:
            raise ParameterError("the oracle was not told any places", "pass places")
        self._evaluation, self._biases = 0, {}

    def attend(self, run: Run, layer: int, scores: Tensor) -> Tensor:
        s = self.settings
        if layer in s.biased and self._evaluation < s.until * run.evaluations:
            positions = scores.shape[2]
            if positions not in self._biases:
                self._biases[positions] = self._bias(run, round(positions**0.5))
            guided = scores[run.unconditional :] + self._biases[positions]
            scores = torch.cat([scores[: run.unconditional], guided])
        return scores.softmax(-1)

    def after(self, run: Run, evaluation: int) -> None:
        self._evaluation = evaluation + 1

    def _bias(self, run: Run, side: int) -> Tensor:
        """[n,1,N,T]."""
        s = self.settings
        assert run.places is not None
        at = (torch.arange(side, device=run.places.device) + 0.5) * SIZE / side
        x, y, radius = run.places.unbind(-1)  # [n,G]
        distance = torch.hypot(at[None, None, None] - x[..., None, None], at[None, None, :, None] - y[..., None, None])
        if s.territory:
            edge = distance - radius[..., None, None]
            inside = (edge == edge.amin(1, keepdim=True)).float()
        else:
            inside = torch.exp(-distance.square() / (2 * (s.window * SIZE) ** 2))
        bias = (s.boost * inside - s.away * (1 - inside)).flatten(2)  # [n,G,N]
        return (bias.transpose(1, 2) @ run.captions.groups)[:, None]
