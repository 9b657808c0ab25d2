"""The parts of the check, in order."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ebca.bench.gpu_check.commands import Part, command
from ebca.bench.gpu_check.images import compare_images, fifty_steps
from ebca.bench.latency.compare import ROWS
from ebca.engines.backends.registry import GPU_BACKENDS


def parts(model: str, work: Path, capability: str) -> list[Part]:
    """The parts in order.

    Args:
        model: checkpoint for the latency parts.
        work: folder for engine directories and results.
        capability: compute capability of the GPU, "8.9".
    """
    module = [sys.executable, "-m"]
    shapes = str(Path(__file__).parents[2] / "examples" / "shapes" / "shapes")

    def written(name: str, words: Sequence[str]) -> Part:
        result = work / f"{name}.json"
        return Part(name, lambda: command([*module, *words, "--json", str(result)], result))

    def exported(name: str, source: str, backend: str, directory: Path, *more: str) -> Part:
        words = [*module, "ebca.export.cli", "--model", source, "--backend", backend, "--overwrite", *more]
        words += ["--compute-capability", capability] if backend == "tensorrt-rtx" else []
        return Part(name, lambda: command([*words, "--output-dir", str(directory)]))

    def of_backend(backend: str, *more: str) -> list[Part]:
        name = " ".join((backend, *more))
        small, full = (work / f"{which}-{name.replace(' ', '')}" for which in ("shapes", "model"))
        bench = ["ebca.bench.cli", "--engine", str(full), "--device", "cuda", "--backend", backend, "--segments"]
        bench += ["--compare-with", ",".join(ROWS)]
        verify = [*module, "ebca.runtime.cli.doctor", "--engine", str(full), "--backend", backend, "--verify"]
        return [
            exported(f"export shapes, {name}", shapes, backend, small, *more),
            Part(f"images, {name}", lambda: compare_images(small, backend)),
            exported(f"export, {name}", model, backend, full, "--with-full-unet", *more),
            Part(f"verify, {name}", lambda: command(verify)),
            written(f"latency, {name}", [*bench, "--model", model]),
            Part(f"50 steps, {name}", lambda: fifty_steps(full, backend)),
        ]

    found = [
        Part("nvidia-smi", lambda: command(["nvidia-smi"])),
        written("doctor", ["ebca.runtime.cli.doctor"]),
        Part("tests", lambda: command([*module, "pytest", "-q", "-m", "gpu", "-rs"])),
        written("kernel", ["ebca.bench.kernel"]),
    ]
    # TensorRT itself is optional: gpu_check.sh does not install it.
    ways: list[tuple[str, ...]] = [(name,) for name in GPU_BACKENDS if name != "tensorrt"]
    if find_spec("tensorrt"):
        ways += [("tensorrt",), ("tensorrt", "--full-unet-plan")]
    return [*found, *(part for way in ways for part in of_backend(*way))]
