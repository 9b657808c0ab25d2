"""How long 50 steps and whole images take."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ebca.bench.gpu_check.results import against
from ebca.runtime.engine import load
from ebca.runtime.session import Session

STEPS: Final = 50
PROMPT: Final = "a photo of a cat"
UPDATE: Final[dict[str, Any]] = {"gamma_attn": 0.01, "gamma_norm": 0.02}

# At the native size of Stable Diffusion 1.5, on an H200.
DENOISING_SECONDS: Final = 0.36
IMAGE_SECONDS: Final = 0.40
STEP_RATIO: Final = 1.03
FIRST_IMAGE_SECONDS: Final = 2.0

_GAMMAS: Final[dict[str, dict[str, Any]]] = {"update": UPDATE, "vanilla": {}}
_WAYS: Final[dict[str, dict[str, Any]]] = {"one_launch": {}, "step_by_step": {"on_step": lambda info: True}}

Times = tuple[float, float]
"""Seconds of a whole image, and of its denoising."""


Report = dict[str, Any]


def fifty_steps(
    engine: Path, backend: str, rounds: int = 6, on_round: Callable[[Mapping[str, Any]], None] = lambda report: None
) -> Report:
    """Time 50 steps with updates and without (gammas 0), as one launch and step by step, in turns.

    The first round includes recording and whatever libraries do at first, and is reported separately. `on_round` is
    called with the results so far after each other round.
    """
    report: Report = {}
    taken: dict[tuple[str, str], list[Times]] = {(way, kind): [] for way in _WAYS for kind in _GAMMAS}
    with load(engine, "cuda", backend) as opened, opened.session() as session:
        report["settings"] = {
            "steps": STEPS, "height": session.height, "width": session.width, "rounds": rounds, **UPDATE,
        }  # fmt: skip
        for done in range(rounds):
            for way, kind in taken:
                taken[way, kind].append(one_image(session, **_GAMMAS[kind], **_WAYS[way]))
            if done:
                for way in _WAYS:
                    report[way] = _summary({kind: taken[way, kind] for kind in _GAMMAS}, goal=way == "one_launch")
                on_round(report)
    return report


def one_image(session: Session, prompt: str = PROMPT, **settings: Any) -> Times:
    """Generate an image with 50 steps."""
    began = time.perf_counter()
    timings = session.generate(prompt, steps=STEPS, seed=0, output="np", **settings).timings
    return time.perf_counter() - began, sum(timings["unet_steps"]) + timings["scheduler"]


def _summary(taken: Mapping[str, list[Times]], *, goal: bool) -> Report:
    """Medians without the first round. goal: the targets are for this way."""
    made: Report = {}
    for kind, times in taken.items():
        image, denoising = (statistics.median(values) for values in zip(*times[1:], strict=True))
        wanted = goal and kind == "update"
        made[kind] = {
            "first_image_s": times[0][0],
            "image_s": against(image, IMAGE_SECONDS) if wanted else image,
            "denoising_s": against(denoising, DENOISING_SECONDS) if wanted else denoising,
            "fastest_denoising_s": min(denoising for _, denoising in times[1:]),
        }
    pairs = zip(taken["update"][1:], taken["vanilla"][1:], strict=True)
    ratio = statistics.median(update / vanilla for (_, update), (_, vanilla) in pairs)
    made["update_over_vanilla"] = against(ratio, STEP_RATIO) if goal else ratio
    return made
