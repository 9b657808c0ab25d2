"""The context update of energy-based cross attention; plugins/energy_attention/README.md has the equations."""

from torch import Tensor

from ebca.bench.alignment.rivals.attention import Guide, Run


class Ebcu(Guide):
    """Every layer moves the contexts of all rows for the layers that follow.

    gamma_attn, gamma_norm: step sizes of the two terms at every evaluation.
    """

    def __init__(self, gamma_attn: float = 0.0, gamma_norm: float = 0.003) -> None:
        self._attn, self._norm = gamma_attn, gamma_norm

    def step(self, run: Run, layer: int, q: Tensor, k: Tensor, scores: Tensor) -> Tensor:
        keys = k.transpose(1, 2).flatten(2)  # [R,T,H d]
        step = -self._norm * keys.square().sum(-1, keepdim=True).softmax(1) * keys
        if self._attn:
            shares = scores.transpose(-1, -2).softmax(-1)  # over the positions
            step = step + self._attn * (shares @ q).transpose(1, 2).flatten(2)
        return step
