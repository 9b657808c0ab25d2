"""Plans of TensorRT: one per segment, and the full UNet with updates as one plan."""

from ebca.bench.gpu_check.checks.plans import run_library
from ebca.bench.gpu_check.results import Found
from ebca.bench.gpu_check.visit import Visit


def run(visit: Visit, found: Found) -> None:
    run_library(visit, found, "tensorrt", full_unet_plan=True)
