"""Whether a GPU computes what the CPU computes, and what PyTorch computes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ebca.bench.gpu_check.results import Failed
from ebca.bench.latency.compare import contenders_of
from ebca.bench.latency.subject import Subject
from ebca.engines.backends.onnxruntime import OnnxRuntimeRunner
from ebca.engines.backends.protocol import Backend
from ebca.engines.contract.accuracy import MIN_PSNR_DB, UNET_LIMITS
from ebca.engines.contract.directory import open_directory
from ebca.engines.contract.manifest import Component
from ebca.engines.machine import processor
from ebca.runtime.devices.registry import create
from ebca.runtime.diagnostics.verify import REFERENCE, verify
from ebca.runtime.engine import Engine, load

Prompt = tuple[str, tuple[str, ...]]
"""A text and its subjects."""

_PROMPTS: tuple[Prompt, ...] = (
    ("a red circle and a blue square", ()),
    ("a yellow star", ()),
    ("a green cross left of a pink heart", ()),
)
_STEPS = 25


def compare_images(engine: Path, backend: str, prompts: Sequence[Prompt] = _PROMPTS) -> dict[str, Any]:
    """Images of the model `shapes` made on the GPU against those of the CPU in float32, from the same seeds.

    Raises:
        Failed: the PSNR is below MIN_PSNR_DB.
    """
    settings: dict[str, Any] = {"steps": _STEPS, "scheduler": "ddim", "gamma_attn": 0.003, "gamma_norm": 0.003}
    made: dict[str, list[np.ndarray]] = {}
    for device, directory, chosen in (("cpu", "shapes", REFERENCE), ("cuda", engine, backend)):
        with load(directory, device, chosen) as opened, opened.session() as session:
            made[device] = [
                session.generate(text, subjects=subjects or None, seed=seed, output="np", **settings).images[0]
                for seed, (text, subjects) in enumerate(prompts)
            ]
    errors = [np.mean((a - b) ** 2) for a, b in zip(made["cpu"], made["cuda"], strict=True)]
    psnr = [float(10 * np.log10(1 / max(error, 1e-12))) for error in errors]
    # Also wrong if a value is not finite.
    if not min(psnr) >= MIN_PSNR_DB or not np.isfinite(psnr).all():
        raise Failed(f"PSNR against the CPU is {[round(p, 1) for p in psnr]} dB, {MIN_PSNR_DB} is wanted")
    return {"psnr_db": psnr, "limit_db": MIN_PSNR_DB, "prompts": [text for text, _ in prompts], **settings}


def compare_noise(engine: Path, backend: str, model: str) -> dict[str, Any]:
    """Relative L2 errors of noise predictions against PyTorch, with updates and without.

    Raises:
        NumericalError: an error is above the limit of the precision.
    """
    with load(engine, "cuda", backend) as opened:
        subject = Subject(
            opened, height=None, width=None, batch_size=1, gamma_attn=0.01, gamma_norm=0.02,
            precision=opened.precision, threads=processor.physical_cores(),
        )  # fmt: skip
        errors = subject.check()
        with contenders_of(subject, model, ("pytorch_sdpa", "pytorch_ebca")) as (_, more):
            return {**errors, **more, "limit": UNET_LIMITS[opened.precision]}


def compare_parts(engine: Path, backend: str) -> dict[str, Any]:
    """Relative L2 error of every part against the CPU, as `ebca-doctor --verify` measures it.

    Raises:
        Failed: an error is above its limit.
    """
    directory = open_directory(engine)
    reference = Engine(directory, _Unprepared(), create("cpu"), directory.manifest.compute)
    with load(engine, "cuda", backend) as opened, reference:
        differences = verify(opened, reference)
    if wrong := [f"{d.part} {d.error:.1e}" for d in differences if not d.ok]:
        raise Failed(f"relative L2 against the CPU is above {differences[0].limit:.0e}: {', '.join(wrong)}")
    return {"limit": differences[0].limit, "errors": {d.part: d.error for d in differences}}


class _Unprepared(Backend):
    """ONNX Runtime on the CPU without prepared forms: a single evaluation is faster than preparing for it."""

    name = REFERENCE

    def identity(self) -> dict[str, str]:
        # Apart from the prepared forms of the real backend.
        return {"onnxruntime": ort.__version__, "unprepared": "1"}

    def open(self, graph: Path, component: Component, dimensions: Mapping[str, int] | None = None) -> OnnxRuntimeRunner:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_mem_pattern = False
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.intra_op_num_threads = processor.physical_cores()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return OnnxRuntimeRunner(ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"]))
