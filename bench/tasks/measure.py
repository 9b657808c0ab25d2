"""Edit and inpaint the same images with several variants, and score the results."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from ebca.bench.alignment.detector import read
from ebca.bench.alignment.measure import OnImages, check_size
from ebca.bench.alignment.prompts import SPLITS
from ebca.bench.alignment.statistics import Paired, compare, share_interval
from ebca.bench.tasks.cases import KINDS, Case, Wish, draw, task_of, wishes
from ebca.bench.tasks.recipes import Editing, Inpainting, Recipe, Variant
from ebca.bench.tasks.scoring import Score, psnr, score
from ebca.errors import CancelledError, ParameterError
from ebca.runtime.engine import Engine
from ebca.runtime.images.outputs import to_bytes
from ebca.runtime.sampling.repaint import RePaint
from ebca.runtime.session import Session

# Images of a model that gets fewer than one in five right are not worth editing.
_PATIENCE = 5


@dataclass(frozen=True)
class Settings:
    """What all variants share.

    count: cases of each kind.
    seed: seed of the first case; later cases have the next ones.
    hole: side of the hole in pixels.
    """

    split: str = "held-out"
    kinds: tuple[str, ...] = KINDS
    count: int = 100
    seed: int = 0
    hole: int = 36
    batch: int = 20

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ParameterError(f"split is '{self.split}'", f"choose {' or '.join(SPLITS)}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise ParameterError(f"there are no cases '{kind}'", f"choose from {', '.join(KINDS)}")
        if self.count < 1 or self.batch < 1:
            raise ParameterError(f"count is {self.count} and batch {self.batch}", "give 1 or more")
        if self.seed < 0:
            raise ParameterError(f"seed is {self.seed}", "give 0 or more")


@dataclass
class Attempts:
    """One variant on the cases of one kind. seconds: in total. images: those that a grid needs."""

    scores: list[Score] = field(default_factory=list)
    seconds: float = 0.0
    images: list[np.ndarray] = field(default_factory=list)

    def vector(self, measure: str) -> np.ndarray:
        """One bool per case: "success", or the name of a check or a note of its score."""
        return np.array([s.success if measure == "success" else {**s.checks, **s.notes}[measure] for s in self.scores])

    @property
    def measures(self) -> tuple[str, ...]:
        """Names for `vector`."""
        return ("success", *self.scores[0].checks, *self.scores[0].notes)


@dataclass(frozen=True)
class KindResult:
    """All attempts at the cases of one kind, by the name of the variant. The others are compared with the first.

    reconstruction: PSNR in dB of each image that was inverted and sampled again without an edit, with the recipe of
        the first variant; empty for kinds without inversion.
    tried: number of images that were made to find the cases.
    """

    variants: tuple[Variant, ...]
    cases: list[Case]
    attempts: Mapping[str, Attempts]
    reconstruction: list[float]
    tried: int

    def compared(self, name: str, measure: str = "success") -> Paired:
        """A variant against the first on the same cases."""
        first = self.attempts[self.variants[0].name]
        return compare(first.vector(measure), self.attempts[name].vector(measure))


@dataclass(frozen=True)
class Tasks:
    """Results by kind."""

    settings: Settings
    results: Mapping[str, KindResult]


def measure(
    engine: Engine,
    variants: Callable[[str], Sequence[Variant]],
    settings: Settings,
    *,
    keep_images: int = 0,
    on_images: OnImages | None = None,
) -> Tasks:
    """Make, change and read all images.

    Args:
        variants: the variants of a kind. The others are compared with the first, whose steps and guidance also make the
            generated images that are edited.
        keep_images: how many images of each kind and variant to keep.
        on_images: called with (done, total, kind and variant) after each batch; False cancels.

    Raises:
        ParameterError: the engine makes images of a size that cannot be read, or that do not show their captions.
        CancelledError: `on_images` returned False.
    """
    check_size(engine)
    total, done = sum(len(variants(kind)) for kind in settings.kinds) * settings.count, 0
    results: dict[str, KindResult] = {}
    for kind in settings.kinds:
        ways = tuple(variants(kind))
        cases, tried = _find(engine, kind, ways[0].recipe, settings)
        attempts = {way.name: Attempts() for way in ways}
        if len(attempts) != len(ways):
            raise ParameterError("two variants have the same name")
        reconstruction: list[float] = []
        for start in range(0, settings.count, settings.batch):
            some = cases[start : start + settings.batch]
            if task_of(kind) == "real":
                plain, _ = _change(engine, kind, ways[0], some, edited=False)
                reconstruction += [psnr(case.before, after) for case, after in zip(some, plain, strict=True)]
            # Batch by batch, so that a slow machine affects all variants alike.
            for way in ways:
                made, seconds = _change(engine, kind, way, some)
                held = attempts[way.name]
                held.seconds += seconds
                held.scores += [score(case, after) for case, after in zip(some, made, strict=True)]
                held.images += list(made[: max(keep_images - len(held.images), 0)])
                done += len(some)
                if on_images and on_images(done, total, f"{kind}, {way.name}") is False:
                    raise CancelledError(f"cancelled after {done} of {total} images")
        results[kind] = KindResult(ways, cases, attempts, reconstruction, tried)
    return Tasks(settings, results)


def to_json(tasks: Tasks) -> dict[str, Any]:
    """Settings, rates with intervals, paired differences, and every score."""
    return {
        "settings": asdict(tasks.settings),
        "kinds": {kind: _plain(result) for kind, result in tasks.results.items()},
    }


def _plain(result: KindResult) -> dict[str, Any]:
    variants: dict[str, Any] = {}
    for way in result.variants:
        held = result.attempts[way.name]
        variants[way.name] = {
            "recipe": asdict(way.recipe),
            "update": way.update.describe(),
            "rates": {name: float(held.vector(name).mean()) for name in held.measures},
            "interval": share_interval(held.vector("success")),
            "seconds_per_picture": held.seconds / len(result.cases),
            "compared": asdict(result.compared(way.name)),
        }
    entry: dict[str, Any] = {"tried": result.tried, "variants": variants}
    if result.reconstruction:
        entry["reconstruction_psnr"] = {
            "mean": float(np.mean(result.reconstruction)),
            "median": float(np.median(result.reconstruction)),
            "each": result.reconstruction,
        }
    entry["cases"] = [
        {"source": case.wish.source.caption(), "target": case.wish.target.caption(), "seed": case.seed}
        | {name: {**held.scores[i].checks, **held.scores[i].notes} for name, held in result.attempts.items()}
        for i, case in enumerate(result.cases)
    ]
    return entry


def _find(engine: Engine, kind: str, recipe: Recipe, settings: Settings) -> tuple[list[Case], int]:
    """The first `count` cases whose image shows exactly its caption, and how many images were made to find them."""
    asked, limit = wishes(kind, settings.split, settings.seed), _PATIENCE * settings.count + settings.batch
    found: list[Case] = []
    tried = 0
    while len(found) < settings.count:
        if tried >= limit:
            raise ParameterError(
                f"only {len(found)} of {tried} images of '{kind}' show their caption, so there is nothing to edit",
                "use the engine 'shapes', or one that is fully trained",
            )
        some = list(islice(asked, settings.batch))
        for case in _before(engine, kind, recipe, some, settings):
            if len(found) < settings.count:
                tried += 1
                found += [case] if read(case.before, case.wish.source).exact else []
    return found, tried


def _before(
    engine: Engine, kind: str, recipe: Recipe, some: Sequence[tuple[Wish, int]], settings: Settings
) -> Iterator[Case]:
    if task_of(kind) != "edit":
        for wish, seed in some:
            yield draw(wish, seed, settings.hole if task_of(kind) == "inpaint" else None)
        return
    with engine.session(batch=len(some)) as session:
        made = session.generate(
            [wish.source.caption() for wish, _ in some],
            steps=recipe.steps,
            guidance_scale=recipe.guidance_scale,
            scheduler="ddim",
            seed=[seed for _, seed in some],
            output="np",
        )
    for (wish, seed), image in zip(some, to_bytes(made.images), strict=True):
        yield Case(wish, seed, image)


def _change(
    engine: Engine, kind: str, way: Variant, cases: Sequence[Case], *, edited: bool = True
) -> tuple[np.ndarray, float]:
    """The images [n,H,W,3] uint8 after the change (sampled again without one if not `edited`), and the seconds it
    took."""
    recipe = way.recipe
    began = time.perf_counter()
    with engine.session(batch=len(cases)) as session:
        if isinstance(recipe, Inpainting):
            task: dict[str, Any] = {
                "prompt": [case.wish.target.caption() for case in cases],
                "image": [case.before for case in cases],
                "mask": [case.mask for case in cases],
                "seed": [case.seed for case in cases],
                "repaint": RePaint(recipe.jump_length, recipe.jump_count),
            }
        else:
            task = _editing(session, kind, recipe, cases)
            task["edits"] = recipe.edits([case.wish for case in cases], way.update) if edited else ()
            task["reset_edits"] = way.update.reset_edits
        made = session.generate(
            **task,
            steps=recipe.steps,
            guidance_scale=recipe.guidance_scale,
            gamma_attn=way.update.gamma_attn if edited else 0.0,
            gamma_norm=way.update.gamma_norm if edited else 0.0,
            output="np",
        )
    return to_bytes(made.images), time.perf_counter() - began


def _editing(session: Session, kind: str, recipe: Editing, cases: Sequence[Case]) -> dict[str, Any]:
    """The start of an edit: the noise of the generated image, or the noise that a drawn image is inverted to."""
    captions = [case.wish.source.caption() for case in cases]
    if task_of(kind) == "edit":
        return {"prompt": captions, "scheduler": "ddim", "seed": [case.seed for case in cases]}
    images = [case.before for case in cases]
    inverted = session.invert(images, captions, steps=recipe.steps, regularize=recipe.regularize)
    # As in the authors' code: guidance acts only on the difference between the edit and the caption.
    return {"prompt": captions, "negative_prompt": captions, "scheduler": "ddim", "latents": inverted.latents}
