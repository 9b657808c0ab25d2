"""The work between two UNet evaluations on a device: guidance, the scheduler's sum, the next controls.

Nothing here waits for the host: a counter on the device holds the index of the evaluation, and tables on the device
hold everything that differs between evaluations. Letters: at most m evaluations, n images, R rows (n, or 2 n with
guidance: the unconditional rows first), S contexts, T tokens, K = S + S T + S control values per row.

    begin   i = step:  sample[:, :C] = input_scale[i] * latents  (for both halves of the rows)
                       timestep = timesteps[i];  weights, gamma_attn, gamma_norm = controls[i]
    end     i = step:  e = noise of the rows, or unconditional + guidance_scale * (conditional - unconditional)
                       history[i] = e
                       latents = coefficients[i,0] * start + sum over j <= i of coefficients[i,j+1] * history[j]
                       contexts[:, 1:] = contexts_out[:, 1:] if carry is set
                       bad = i + 1 if it is 0 and e, latents or contexts_out is not finite
    advance            step = step + 1

A fourth, for UNets whose time embeddings have been computed for all evaluations beforehand: a table of W words and
E words of the UNet's buffers. A word has 32 bits, whatever the dtype of the embeddings.

    embed   i = step:  time_embeddings[e] = embeddings[embedding_base[e] + i * embedding_stride[e]]
"""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Tensor(NamedTuple):
    """dtype and shape. A dimension is a number, or a letter of the module docstring (C, h, w are those of the
    latents)."""

    dtype: str
    shape: tuple[str | int, ...]


STATE: Final[Mapping[str, Tensor]] = {
    "step": Tensor("int32", (1,)),
    "bad": Tensor("int32", (1,)),
    "carry": Tensor("int32", (1,)),
    "guidance_scale": Tensor("float32", (1,)),
    "timesteps": Tensor("float32", ("m",)),
    "input_scale": Tensor("float32", ("m",)),
    "coefficients": Tensor("float64", ("m", "m+1")),
    "controls": Tensor("float32", ("m", "R*K")),
    "start": Tensor("float32", ("n", "C", "h", "w")),
    "latents": Tensor("float32", ("n", "C", "h", "w")),
    "history": Tensor("float32", ("m", "n", "C", "h", "w")),
}
"""Tensors of the sampling loop. A row of `controls` holds weights [R,S], gamma_attn [R,S,T] and gamma_norm [R,S]."""

UNET: Final = ("sample", "timestep", "contexts", "noise", "contexts_out", "weights", "gamma_attn", "gamma_norm")
"""Tensors shared with the UNet, float32."""

KERNELS: Final = ("begin", "end", "advance")

EMBEDDINGS: Final[Mapping[str, Tensor]] = {
    "step": STATE["step"],
    "embeddings": Tensor("int32", ("W",)),
    "embedding_base": Tensor("int32", ("E",)),
    "embedding_stride": Tensor("int32", ("E",)),
    "time_embeddings": Tensor("int32", ("E",)),
}
"""Tensors of the kernel EMBED. It reads a word at the index `base + i * stride`, which must be in the table; stride 0
repeats a word at every evaluation."""

EMBED: Final = "embed"
"""Optional, so not one of KERNELS: enqueued before the UNet by a sampler that has such a table."""
