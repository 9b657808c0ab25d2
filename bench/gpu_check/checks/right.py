"""Is what the GPU computes right?"""

from collections.abc import Callable, Mapping
from typing import Any

from ebca.bench.gpu_check.checks.accuracy import compare_images, compare_noise, compare_parts
from ebca.bench.gpu_check.results import Failed, Found, Skipped
from ebca.bench.gpu_check.visit import BACKEND, Visit


def run(visit: Visit, found: Found) -> None:
    all_of(
        found,
        {
            "images": lambda: compare_images(visit.engine("shapes"), BACKEND),
            "noise": lambda: compare_noise(visit.engine("model"), BACKEND, visit.checkpoint()),
            "parts": lambda: compare_parts(visit.engine("model"), BACKEND),
        },
    )


def all_of(found: Found, comparisons: Mapping[str, Callable[[], Any]]) -> None:
    """Run every comparison, whatever becomes of the others.

    Raises:
        Failed: one of them failed.
        Skipped: none of them can run.
    """
    wrong, skipped = [], []
    for name, compare in comparisons.items():
        print(name, flush=True)
        try:
            found[name] = compare()
        except Skipped as error:
            found[name] = {"skipped": str(error)}
            skipped.append(str(error))
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
            wrong.append(f"{name}: {error}")
    if wrong:
        raise Failed("; ".join(wrong))
    if len(skipped) == len(comparisons):
        raise Skipped(skipped[0])
