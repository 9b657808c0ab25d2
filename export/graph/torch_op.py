"""The op in PyTorch: the reference of an export, and the PyTorch side of benchmarks."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class TorchEnergyAttention:
    """`ebca.plugins.energy_attention` in torch, in the same letters. If `keep` is set, it records each layer's tensors.

    weights [B,S], gamma_attn [B,S,T], gamma_norm [B,S]; heads per layer.
    """

    heads: list[int]
    weights: Tensor
    gamma_attn: Tensor
    gamma_norm: Tensor
    keep: bool = False
    record: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, g = energy_attention(q, k, v, self.heads[layer], self.weights, self.gamma_attn, self.gamma_norm)
        if self.keep:
            for role, tensor in (("q", q), ("k", k), ("v", v), ("out", out), ("g", g)):
                self.record[f"layer_{layer:02}.{role}"] = tensor
        return out, g


def energy_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, weights: Tensor, gamma_attn: Tensor, gamma_norm: Tensor
) -> tuple[Tensor, Tensor]:
    """(out [B,N,Hd], g [B,S,T,Hd]) of q [B,N,Hd], k and v [B,S,T,Hd]; no mask, no tied rows.

    The equations are in the README of `ebca.plugins.energy_attention`.
    """
    qh = q.unflatten(-1, (heads, -1)).transpose(1, 2)[:, None]  # [B,1,H,N,d]
    kh = k.unflatten(-1, (heads, -1)).transpose(2, 3)  # [B,S,H,T,d]
    vh = v.unflatten(-1, (heads, -1)).transpose(2, 3)
    scores = qh @ kh.mT * qh.shape[-1] ** -0.5  # [B,S,H,N,T]
    out = scores.softmax(-1) @ vh
    w = (weights / weights.sum(1, keepdim=True))[:, :, None, None, None]
    out = (out * w).sum(1).transpose(1, 2).flatten(2)
    g_attn = (scores.mT.softmax(-1) @ qh).transpose(2, 3).flatten(3)  # [B,S,T,Hd]
    r = (k * k).sum(-1).softmax(-1)
    return out, gamma_attn[..., None] * g_attn - (gamma_norm[..., None] * r)[..., None] * k
