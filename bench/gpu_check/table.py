"""The parts of the check in order, the most important first: a visit may end before the last one."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Part:
    """One part, which runs in a process of its own.

    name: of the part, and of its module in `ebca.bench.gpu_check.checks`, with "_" for "-".
    limit: seconds after which it is ended, on 16 cores with a current GPU.
    engines: names of the engine directories that it reads.
    what: it finds out.
    """

    name: str
    limit: int
    engines: tuple[str, ...]
    what: str

    @property
    def module(self) -> str:
        return f"ebca.bench.gpu_check.checks.{self.name.replace('-', '_')}"


ENGINES: Final = Part("engines", 20, (), "engine directories: unpacked, or exported")
"""Runs before the others if a directory is missing."""

EXPORT_SECONDS: Final = 1800
"""The limit of `engines` when it exports."""

_TENSORRT = ("shapes-tensorrt", "model-tensorrt", "model-tensorrt-full-unet-plan")

PARTS: Final = (
    Part("runs", 30, ("tiny", "tiny-xl", "model"), "directories open, are captured, and give finite results"),
    Part("right", 60, ("shapes", "model"), "images and every part against the CPU, noise against PyTorch"),
    Part("steps", 60, ("model",), "time of 50 steps and of whole images, the first of a process too"),
    Part("parts", 20, ("model",), "time of every segment and op"),
    Part("memory", 25, ("model",), "memory of the GPU by purpose"),
    Part("rivals", 110, ("model",), "time of PyTorch: plain, in a CUDA graph, compiled, with updates"),
    Part("kernels", 55, (), "kernels against the float64 reference, and against PyTorch in time"),
    Part("cpp", 25, ("model",), "time of 50 steps in the C library"),
    Part("subjects", 20, ("shapes", "model"), "time of 50 steps with subjects, and their images against the CPU"),
    Part("variants", 20, ("model",), "settings of cuDNN's search for algorithms"),
    Part("tensorrt-rtx", 20, ("shapes-tensorrt-rtx", "model-tensorrt-rtx"), "plans of TensorRT for RTX"),
    Part("tensorrt", 15, _TENSORRT, "plans of TensorRT"),
)

TOTAL_SECONDS: Final = ENGINES.limit + sum(part.limit for part in PARTS)
