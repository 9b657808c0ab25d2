"""Complete images on the GPU: whether they are right, and how long they take."""

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from ebca.bench.gpu_check.commands import Failed
from ebca.engines.contract.accuracy import MIN_PSNR_DB
from ebca.runtime.engine import load

_PROMPTS = ("a red circle and a blue square", "a yellow star", "a green cross left of a pink heart")
_STEPS = 25
_ROUNDS = 6


def compare_images(engine: Path, backend: str) -> dict[str, Any]:
    """Images made on the GPU against those of the CPU in float32, from the same seeds. Raises Failed below
    MIN_PSNR_DB."""
    settings: dict[str, Any] = {"steps": _STEPS, "scheduler": "ddim", "gamma_attn": 0.003, "gamma_norm": 0.003}
    made: dict[str, list[np.ndarray]] = {}
    for device, directory, chosen in (("cpu", "shapes", "onnxruntime"), ("cuda", engine, backend)):
        with load(directory, device, chosen) as opened, opened.session() as session:
            made[device] = [
                session.generate(prompt, seed=seed, output="np", **settings).images[0]
                for seed, prompt in enumerate(_PROMPTS)
            ]
    errors = [np.mean((a - b) ** 2) for a, b in zip(made["cpu"], made["cuda"], strict=True)]
    psnr = [float(10 * np.log10(1 / max(error, 1e-12))) for error in errors]
    if min(psnr) < MIN_PSNR_DB:
        raise Failed(f"PSNR against the CPU is {[round(p, 1) for p in psnr]} dB, {MIN_PSNR_DB} is wanted")
    return {"psnr_db": psnr, "prompts": _PROMPTS, **settings}


def fifty_steps(engine: Path, backend: str) -> dict[str, Any]:
    """Seconds for complete images with 50 steps, as one launch and step by step, in turns. The first ones include
    compiling and recording, and are reported separately."""
    settings: dict[str, Any] = {"steps": 50, "seed": 0, "gamma_attn": 0.01, "gamma_norm": 0.02}
    ways: dict[str, Any] = {"one_launch": {}, "step_by_step": {"on_step": lambda info: True}}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with load(engine, "cuda", backend) as opened, opened.session() as session:
        for _ in range(_ROUNDS):
            for name, way in ways.items():
                began = time.perf_counter()
                timings = session.generate("a photo of a cat", **settings, **way).timings
                denoising = sum(timings["unet_steps"]) + timings["scheduler"]
                taken[name].append((time.perf_counter() - began, denoising))
        made = {
            name: {
                "first_s": rounds[0][0],
                "image_s": statistics.median(image for image, _ in rounds[1:]),
                "denoising_s": statistics.median(denoising for _, denoising in rounds[1:]),
            }
            for name, rounds in taken.items()
        }
        return {**made, "height": session.height, "width": session.width, **settings}
