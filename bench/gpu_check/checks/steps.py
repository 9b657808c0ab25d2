"""How long do 50 steps take, whole images, and the first image of a process?"""

import tempfile
from pathlib import Path

from ebca.bench.gpu_check.checks import child
from ebca.bench.gpu_check.checks.timing import FIRST_IMAGE_SECONDS, fifty_steps
from ebca.bench.gpu_check.results import Found, against
from ebca.bench.gpu_check.visit import BACKEND, Visit


def run(visit: Visit, found: Found) -> None:
    engine = visit.engine("model")
    fifty_steps(engine, BACKEND, on_round=found.update)
    first_images(engine, BACKEND, found)


def first_images(engine: Path, backend: str, found: Found) -> None:
    """Time the first image of a process that finds no caches, and of the next one, which finds what that one left."""
    with tempfile.TemporaryDirectory(prefix="ebca-gpu-") as folder:
        caches = {"EBCA_CACHE_DIR": f"{folder}/ebca", "CUDA_CACHE_PATH": f"{folder}/cuda"}
        for name in ("cold_cache", "warm_cache"):
            made = child.measure("python", engine, backend, caches)
            found[name] = {**made, "first_image_s": against(made["first_image_s"], FIRST_IMAGE_SECONDS)}
