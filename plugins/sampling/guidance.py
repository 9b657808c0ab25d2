"""Classifier-free guidance in numpy; `kernels.py` has the same as part of the kernel "end"."""

import numpy as np


def guide(noise: np.ndarray, guidance_scale: float | np.floating | None) -> np.ndarray:
    """Noise predictions [halves,n,C,h,w] -> guided ones [n,C,h,w] float32.

    With two halves: unconditional + scale * (conditional - unconditional). With one half, or no scale: the first.
    """
    if guidance_scale is None or len(noise) == 1:
        return np.array(noise[0])
    unconditional, conditional = noise
    with np.errstate(over="ignore", invalid="ignore"):
        guided: np.ndarray = np.subtract(conditional, unconditional)
        guided *= np.float32(guidance_scale)
        guided += unconditional
    return guided
