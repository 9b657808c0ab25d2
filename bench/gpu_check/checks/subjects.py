"""What do subjects cost on a GPU, and are their images those of the CPU?"""

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ebca.bench.gpu_check.checks.accuracy import compare_images
from ebca.bench.gpu_check.checks.right import all_of
from ebca.bench.gpu_check.checks.timing import UPDATE, one_image
from ebca.bench.gpu_check.results import Found, against
from ebca.bench.gpu_check.visit import BACKEND, Visit
from ebca.runtime.engine import load

PROMPT: Final = "a red square, a green triangle and a blue circle"
SUBJECTS: Final = ("red square", "green triangle", "blue circle")
RATIO: Final = 1.02


def run(visit: Visit, found: Found) -> None:
    all_of(
        found,
        {
            "times": lambda: times(visit.engine("model"), BACKEND),
            "images": lambda: compare_images(visit.engine("shapes"), BACKEND, ((PROMPT, SUBJECTS),)),
        },
    )


def times(
    engine: Path, backend: str, rounds: int = 7, on_round: Callable[[Mapping[str, Any]], None] = lambda report: None
) -> dict[str, Any]:
    """Time 50 steps with updates, without subjects and with three, in turns; the first round is left out.

    Args:
        on_round: called with the results so far after each other round.
    """
    kinds: dict[str, dict[str, Any]] = {"without": {}, "with_three": {"subjects": SUBJECTS}}
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    report: dict[str, Any] = {}
    with load(engine, "cuda", backend) as opened, opened.session() as session:
        for done in range(rounds):
            for kind, settings in kinds.items():
                taken[kind].append(one_image(session, prompt=PROMPT, **UPDATE, **settings)[1])
            if done:
                report = {f"{kind}_denoising_s": statistics.median(values[1:]) for kind, values in taken.items()}
                pairs = zip(taken["with_three"][1:], taken["without"][1:], strict=True)
                report["with_over_without"] = against(statistics.median(a / b for a, b in pairs), RATIO)
                on_round(report)
    return report
