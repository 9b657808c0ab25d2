"""Classifier-free guidance in numpy; `kernels.py` has the same as part of the kernel "end"."""

import numpy as np


def guide(
    noise: np.ndarray,
    guidance_scale: float | np.floating | None,
    image_guidance_scale: float | None = None,
) -> np.ndarray:
    """Noise predictions [parts,n,C,h,w] -> guided ones [n,C,h,w] float32.

    With two parts: unconditional + scale * (conditional - unconditional). With three, of InstructPix2Pix (equation 3
    there): unconditional + scale * (conditional - image) + image_scale * (image - unconditional), where the second part
    sees the image, and the third the text too. With one part, or no scale: the first.
    """
    if guidance_scale is None or len(noise) == 1:
        return np.array(noise[0])
    if image_guidance_scale is not None:
        unconditional, image, conditional = noise
        with np.errstate(over="ignore", invalid="ignore"):
            by_text = np.float32(guidance_scale) * (conditional - image)
            by_image = np.float32(image_guidance_scale) * (image - unconditional)
            return np.asarray(unconditional + by_text + by_image)
    unconditional, conditional = noise
    with np.errstate(over="ignore", invalid="ignore"):
        guided: np.ndarray = np.subtract(conditional, unconditional)
        guided *= np.float32(guidance_scale)
        guided += unconditional
    return guided
