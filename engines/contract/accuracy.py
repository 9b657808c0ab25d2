"""How far results may differ: the one measure, and the one table of limits."""

from collections.abc import Mapping
from typing import Final

import numpy as np

Limits = Mapping[str, float]
"""Precision or storage type -> the largest relative L2 error that passes."""

LIMITS: Final[Limits] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""One part of a model on its own: a segment, an op, a text encoder, half of a VAE.

fp32: two backends differ by 1e-7 to 1e-5 (the softmax of the norm term is peaked). The smallest misreading of the maths
that shows at all moves the noise by 3e-3.
fp16: one rounding costs 2e-4. A segment has some thirty in a row; 1e-3 was observed.
bf16: three bits less than fp16.
"""

UNET_LIMITS: Final[Limits] = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2}
"""The noise prediction of one evaluation, which averages over the errors of its parts.

fp16: 1.8e-3 was observed at Stable Diffusion 1.5 size. bf16: hundreds of roundings to 8 bits cost about 1e-2.
"""

FULL_UNET_LIMITS: Final[Limits] = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-1}
"""The noise prediction of the full UNet as one graph.

bf16: a single graph also computes the sinusoids of the timestep in bfloat16, which costs 7e-2 at timestep 500. A wrong
graph is off by the noise's own size.
"""

KERNEL_LIMITS: Final[Limits] = {"float16": 2 * 2.0**-11, "bfloat16": 2 * 2.0**-8}
"""Outputs of the GPU kernels: twice the roundoff of the storage type, which one rounding of the result reaches half
of."""

ENERGY_LIMIT: Final = 1e-6
"""Energies, which the kernels compute and store in float32; 1e-7 was observed."""

UNFUSED_FACTOR: Final = 8
"""An operator composed of PyTorch's own kernels may miss KERNEL_LIMITS by this factor: it also rounds the scores to the
storage type, and a softmax magnifies that."""

MIN_PSNR_DB: Final = 40.0
"""Images of the bundled model `shapes`, float16 on a GPU against float32 on the CPU; 48 to 65 dB were observed between
float16 and float32 graphs on the CPU."""


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    """|actual - expected| / |expected|, computed in float64.

    0 for equal arrays, even if both are zero. Infinite if a value is not finite, so that the largest of several errors
    shows it.
    """
    difference = float(np.linalg.norm(np.asarray(actual, np.float64) - expected))
    scale = float(np.linalg.norm(np.asarray(expected, np.float64)))
    error = difference / scale if scale else float(difference > 0)
    return error if np.isfinite(error) else float("inf")
