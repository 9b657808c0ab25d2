"""Plans of TensorRT for RTX."""

from ebca.bench.gpu_check.checks.plans import run_library
from ebca.bench.gpu_check.results import Found
from ebca.bench.gpu_check.visit import Visit


def run(visit: Visit, found: Found) -> None:
    run_library(visit, found, "tensorrt-rtx")
