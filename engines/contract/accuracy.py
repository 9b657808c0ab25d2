"""How far one engine's results are from another's, and how far they may be."""

import numpy as np

# Relative L2 of one part of a model, by what it computes in. float32 on two engines differs by 1e-7 to 1e-5 here (the
# norm term's softmax is peaked); the smallest wrong reading of the maths that shows at all moves the noise by 3e-3.
# A rounding to float16 is off by 2e-4, a segment has some thirty in a row and was seen at 1e-3. bfloat16 keeps three
# bits less.
LIMITS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    """|actual - expected| / |expected| in float64; 0 for equal arrays, even if both are zero; infinite where a value is
    not finite, so that the largest of several errors shows it."""
    difference = float(np.linalg.norm(np.asarray(actual, np.float64) - expected))
    scale = float(np.linalg.norm(np.asarray(expected, np.float64)))
    error = difference / scale if scale else float(difference > 0)
    return error if np.isfinite(error) else float("inf")
