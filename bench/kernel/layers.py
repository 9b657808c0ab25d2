"""The cross-attention layers of Stable Diffusion models."""

from collections.abc import Mapping, Sequence
from typing import Final

LAYERS: Final[Mapping[str, Sequence[tuple[int, int, int]]]] = {
    "sd-1": [(8, 40, 4096), (8, 80, 1024), (8, 160, 256), (8, 160, 64)],
    "sd-2": [(5, 64, 9216), (10, 64, 2304), (20, 64, 576), (20, 64, 144)],
    "sdxl": [(10, 64, 4096), (20, 64, 1024)],
}
"""heads, head_dim, positions at 512 x 512 (SD 1.x), 768 x 768 (SD 2.x), 1024 x 1024 (SDXL)."""
