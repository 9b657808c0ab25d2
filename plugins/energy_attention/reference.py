"""The reference in float64 numpy: the equations of README.md, one line each, kept simple rather than fast."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebca.errors import ParameterError
from ebca.plugins.energy_attention.contract import check_guidance, check_weights

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EnergyAttentionResult:
    """Everything the operator can produce, in float64."""

    out: Array  # [B, N, H*d]
    g: Array  # [B, S, T, H*d]
    energy_attn: Array  # [B, S]
    energy_norm: Array  # [B, S]
    maps: Array  # [B, G, N] of the main context; G = 0 without token groups


def energy_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    heads: int,
    weights: ArrayLike | None = None,
    gamma_attn: ArrayLike = 0.0,
    gamma_norm: ArrayLike = 0.0,
    mask: ArrayLike | None = None,
    tie: ArrayLike | None = None,
    norm_factor: float = 1.0,
    bias: ArrayLike | None = None,
    token_groups: ArrayLike | None = None,
) -> EnergyAttentionResult:
    """Cross attention over S contexts and one energy step per context (Park et al. 2023; README.md).

    q [B, N, H*d]; k, v [B, S, T, H*d]; any real dtype, computed in float64. Broadcast to their full shape:
    weights [B, S] (default 1), gamma_attn [B, S, T], gamma_norm [B, S], mask [B, S, N] (default 1),
    tie [B, S, S] (default identity). Guidance takes both bias [B, S, G, N] and token_groups [B, S, T], integers.

    Raises ParameterError for shapes that do not match, heads that do not divide the channels, or what check_weights and
    check_guidance refuse.
    """
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    if q.ndim != 3 or k.ndim != 4:
        raise ParameterError(
            f"q has shape {q.shape} and k {k.shape}",
            "pass q [batch, positions, channels] and k [batch, contexts, tokens, channels]",
        )
    if v.shape != k.shape:
        raise ParameterError(f"v has shape {v.shape}, k has {k.shape}", "they must be equal")
    if (q.shape[0], q.shape[2]) != (k.shape[0], k.shape[3]):
        raise ParameterError(f"q {q.shape} and k {k.shape} differ in batch or channels")
    if min(*q.shape, *k.shape) < 1:
        raise ParameterError(f"q {q.shape} and k {k.shape} must have no empty dimension")
    B, N, channels = q.shape
    _, S, T, _ = k.shape
    if heads < 1 or channels % heads:
        raise ParameterError(f"heads={heads} does not divide the {channels} channels of q", "pass the layer's heads")
    H, d = heads, channels // heads

    w = _expand("weights", 1.0 if weights is None else weights, (B, S))
    check_weights(w)
    ga = _expand("gamma_attn", gamma_attn, (B, S, T))
    gn = _expand("gamma_norm", gamma_norm, (B, S))
    m = _expand("mask", 1.0 if mask is None else mask, (B, S, N))
    mix = _expand("tie", np.eye(S) if tie is None else tie, (B, S, S))

    # [B, S, H, N or T, d], with one context for q. Matrix products: einsum takes ten times as long for these.
    qh = q.reshape(B, 1, N, H, d).swapaxes(2, 3)
    kh, vh = (x.reshape(B, S, T, H, d).swapaxes(2, 3) for x in (k, v))
    scores = qh @ kh.swapaxes(-1, -2) / np.sqrt(d)  # [B, S, H, N, T]

    if bias is None and token_groups is None:
        bias, token_groups = np.zeros((B, S, 0, N)), np.full((B, S, T), -1)
    elif bias is None or token_groups is None:
        raise ParameterError("guidance is only half given", "pass both bias and token_groups, or neither")
    else:
        check_guidance(bias, token_groups)
    bias, token_groups = np.asarray(bias, dtype=np.float64), np.asarray(token_groups)
    _same_shape("bias", bias, (B, S, bias.shape[2], N))
    _same_shape("token_groups", token_groups, (B, S, T))
    member = (token_groups[..., None] == np.arange(bias.shape[2])).astype(np.float64)  # [B, S, T, G]
    biased = scores + (member @ bias).swapaxes(-1, -2)[:, :, None]
    maps = (_softmax(scores[:, 0], axis=-1).mean(axis=1) @ member[:, 0]).swapaxes(-1, -2)

    attended = (_softmax(biased, axis=-1) @ vh).swapaxes(2, 3).reshape(B, S, N, channels)
    out = np.einsum("bs,bsnc->bnc", w, attended) / w.sum(axis=1)[:, None, None]

    over_positions = _softmax(scores, axis=-2)
    attn_term = over_positions.swapaxes(-1, -2) @ (m[:, :, None, :, None] * qh)  # [B, S, H, T, d]
    attn_term = attn_term.swapaxes(2, 3).reshape(k.shape)
    squared_norm = np.square(k).sum(axis=-1)  # [B, S, T], over all heads together
    r = _softmax(norm_factor * squared_norm, axis=-1)
    g0 = ga[..., None] * attn_term - gn[..., None, None] * r[..., None] * k
    g = np.einsum("bsz,bztc->bstc", mix, g0)

    return EnergyAttentionResult(
        out=out,
        g=g,
        energy_attn=-_logsumexp(scores, axis=-2).sum(axis=-1).mean(axis=-1),
        energy_norm=_logsumexp(0.5 * squared_norm, axis=-1),
        maps=maps,
    )


def _expand(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    array: NDArray[Any] = np.asarray(value, dtype=np.float64)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ParameterError(f"{name} has shape {array.shape}", f"it must broadcast to {shape}") from None


def _same_shape(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ParameterError(f"{name} has shape {array.shape}", f"it must be {shape}")


def _softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _logsumexp(x: Array, axis: int) -> Array:
    top = x.max(axis=axis, keepdims=True)
    return (top + np.log(np.exp(x - top).sum(axis=axis, keepdims=True))).squeeze(axis)
