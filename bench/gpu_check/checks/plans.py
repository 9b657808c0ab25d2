"""Do the plans of a TensorRT library run, are they right, and how fast are they?"""

from ebca.bench.gpu_check.checks.accuracy import compare_images, compare_parts
from ebca.bench.gpu_check.checks.right import all_of
from ebca.bench.gpu_check.checks.timing import fifty_steps
from ebca.bench.gpu_check.results import Found, Skipped
from ebca.bench.gpu_check.visit import Visit
from ebca.engines.backends.tensorrt_library import installed_version, supported_capabilities


def why_not(library: str, capability: str) -> str | None:
    """Why a library cannot run on a GPU of this compute capability; None if it can."""
    if installed_version(library) is None:
        return f"{library} is not installed"
    supported = supported_capabilities(library)
    if supported and capability not in supported:
        return f"{library} does not support compute capability {capability}: use onnxruntime-cuda"
    return None


def run_library(visit: Visit, found: Found, library: str, *, full_unet_plan: bool = False) -> None:
    """The part of one library; `full_unet_plan` adds the full UNet with updates as one plan.

    Raises:
        Skipped: the library cannot run here, or there is no engine directory with its plans.
        Failed: results are wrong, or something did not run.
    """
    if reason := why_not(library, visit.capability):
        raise Skipped(reason)
    model = f"model-{library}"
    comparisons = {
        "images": lambda: compare_images(visit.engine(f"shapes-{library}"), library),
        "steps": lambda: fifty_steps(visit.engine(model), library),
        "parts": lambda: compare_parts(visit.engine(model), library),
    }
    if full_unet_plan:
        comparisons["full_unet_plan"] = lambda: fifty_steps(visit.engine(f"{model}-full-unet-plan"), library)
    all_of(found, comparisons)
