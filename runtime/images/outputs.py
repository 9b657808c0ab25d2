"""From arrays to images."""

import numpy as np
from PIL import Image

# Their names before there was a module of files.
from ebca.runtime.images.files import read_parameters as read_parameters
from ebca.runtime.images.files import save_image as save_png

__all__ = ["read_parameters", "save_png", "to_bytes", "to_pil", "to_unit_range"]


def to_unit_range(decoded: np.ndarray) -> np.ndarray:
    """[n,3,H,W] in [-1, 1] -> [n,H,W,3] in [0, 1], float32."""
    return np.clip(decoded * 0.5 + 0.5, 0.0, 1.0).transpose(0, 2, 3, 1)


def to_bytes(images: np.ndarray) -> np.ndarray:
    """[...] in [0, 1] -> [...] uint8, rounded."""
    return np.rint(images * 255).astype(np.uint8)


def to_pil(images: np.ndarray) -> list[Image.Image]:
    """[n,H,W,3] in [0, 1] -> RGB images."""
    return [Image.fromarray(image) for image in to_bytes(images)]
