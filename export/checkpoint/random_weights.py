"""Random weights by name: the same bytes on every machine, and with numpy alone, so that they need not be copied."""

import math
import zlib

import numpy as np


def random_parameter(key: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The float32 parameter `key` of a random model.

    Each parameter has a random stream of its own, so their order does not matter, and threads can make several at once.
    Biases are near 0, scales of norms near 1, and products keep the size of what they multiply.
    """
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode(), seed)))
    noise = rng.standard_normal(size=shape, dtype=np.float32)
    if key.endswith(".bias"):
        noise *= np.float32(0.02)
    elif len(shape) == 1:
        noise = np.float32(1) + np.float32(0.02) * noise
    else:
        noise /= np.float32(math.sqrt(math.prod(shape[1:])))
    return noise
