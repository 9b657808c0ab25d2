"""How does cuDNN's search for convolution algorithms change the first image and the steps?"""

from functools import partial
from typing import Final

from ebca.bench.gpu_check.checks import child
from ebca.bench.gpu_check.checks.right import all_of
from ebca.bench.gpu_check.results import Found
from ebca.bench.gpu_check.visit import BACKEND, Visit

VARIANTS: Final = {
    "heuristic": {"cudnn_conv_algo_search": "HEURISTIC"},
    "exhaustive": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
}
"""Options of ONNX Runtime's CUDA provider."""


def run(visit: Visit, found: Found) -> None:
    engine = visit.engine("model")
    all_of(
        found,
        {
            name: partial(child.measure, "python", engine, BACKEND, options=options)
            for name, options in VARIANTS.items()
        },
    )
