"""What happens between two evaluations of the UNet, on the device: guidance, the scheduler's sum, the next controls.

Nothing here waits for the host: which evaluation it is stands in a counter on the device, and everything that differs
from one to the next in tables there. Letters: m evaluations at most, n pictures, R rows (n, or 2 n with guidance: the
unconditional ones first), S contexts, T tokens, K = S + S T + S control values of a row.

    begin   i = step:  sample[:, :C] = input_scale[i] * latents  (for both halves of the rows)
                       timestep = timesteps[i];  weights, gamma_attn, gamma_norm = controls[i]
    end     i = step:  e = noise of the rows, or unconditional + guidance_scale * (conditional - unconditional)
                       history[i] = e
                       latents = coefficients[i,0] * start + sum over j <= i of coefficients[i,j+1] * history[j]
                       contexts[:, 1:] = contexts_out[:, 1:] where carry is set
                       bad = i + 1 where it is 0 and e, latents or contexts_out is not finite
    advance            step = step + 1
"""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Tensor(NamedTuple):
    """dtype and shape; a dimension is a number or one of the names in the text above (C, h, w as in latents)."""

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
"""What belongs to the loop. A row of `controls` holds weights [R,S], gamma_attn [R,S,T] and gamma_norm [R,S]."""

UNET: Final = ("sample", "timestep", "contexts", "noise", "contexts_out", "weights", "gamma_attn", "gamma_norm")
"""What it shares with the UNet, float32."""

KERNELS: Final = ("begin", "end", "advance")
