"""Make images of prompts with several methods from the same seeds, and score them."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from ebca.bench.alignment.methods import Method
from ebca.bench.alignment.statistics import Paired, compare
from ebca.bench.ane.folder import Folder
from ebca.bench.ane.prompts import Prompt
from ebca.bench.ane.scores import MEASURES, TEMPLATES, Judge
from ebca.errors import CancelledError, ParameterError
from ebca.runtime.engine import Engine
from ebca.runtime.session import Session

Prompts = Mapping[str, Sequence[Prompt]]
"""By subset."""

OnImages = Callable[[int, int, str], bool | None]

# The first call on a GPU records and compiles.
_WARM_STEPS = 2


@dataclass(frozen=True)
class Settings:
    """What all methods share. Each prompt has images with the seeds `seed`, `seed` + 1, ...

    seeds: images of each prompt and method.
    steps, guidance_scale, scheduler: as in `Session.generate`.
    batch: images per call, all of one prompt.
    """

    seeds: int = 64
    seed: int = 0
    steps: int = 50
    guidance_scale: float | None = None
    scheduler: str | None = None
    batch: int = 8

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.batch < 1:
            raise ParameterError(f"--seeds is {self.seeds} and --batch-size {self.batch}", "give 1 or more")

    @property
    def all_seeds(self) -> range:
        """The seeds of each prompt."""
        return range(self.seed, self.seed + self.seeds)


@dataclass(frozen=True)
class Scores:
    """All scores of a run.

    values: by subset and method: MEASURES by prompts by seeds [3,p,s], float64.
    """

    settings: Settings
    methods: tuple[Method, ...]
    prompts: Prompts
    values: Mapping[str, Mapping[str, np.ndarray]]

    def means(self, subset: str, method: str) -> np.ndarray:
        """The mean over seeds for each measure and prompt [3,p]."""
        return self.values[subset][method].mean(-1)

    def compared(self, subset: str, method: str) -> dict[str, Paired]:
        """The method against the base, by measure.

        The cases are prompts, not images: images of one prompt are not independent. So `gained` and `lost` count
        prompts whose mean rises or falls, and `p_value` is that of the sign test.
        """
        base, other = self.means(subset, self.methods[0].name), self.means(subset, method)
        return {name: compare(a, b) for name, a, b in zip(MEASURES, base, other, strict=True)}


def shared_facts(engine: Engine, settings: Settings, clip: str, captioner: str) -> dict[str, Any]:
    """What all results of a folder have in common: everything that changes a score but is no part of a method."""
    templates = hashlib.sha256("\n".join(TEMPLATES).encode()).hexdigest()[:16]
    names = ("steps", "guidance_scale", "scheduler")
    return {
        "engine": hashlib.sha256(engine.manifest.to_json().encode()).hexdigest()[:16],
        **{name: getattr(settings, name) for name in names},
        **{"clip": clip, "captioner": captioner, "templates": templates},
    }


def missing(folder: Folder, methods: Sequence[Method], prompts: Prompts, settings: Settings) -> int:
    """How many images have no score yet."""
    return sum(len(_unscored(folder, method, prompt, settings)) for prompt in _every(prompts) for method in methods)


def seconds_per_image(engine: Engine, method: Method, prompts: Prompts, settings: Settings) -> float:
    """The time of one image, measured with a batch of the first prompt. Without its judging."""
    seeds = list(settings.all_seeds)[: settings.batch]
    prompt = next(_every(prompts))
    with _Maker(engine, settings) as maker:
        maker.make(method, prompt, seeds, steps=min(_WARM_STEPS, settings.steps))
        began = time.perf_counter()
        maker.make(method, prompt, seeds)
        return (time.perf_counter() - began) / len(seeds)


def measure(
    engine: Engine,
    judge: Judge,
    folder: Folder,
    methods: Sequence[Method],
    prompts: Prompts,
    settings: Settings,
    on_images: OnImages | None = None,
) -> Scores:
    """Make and score all images that the folder has no score of; an image that it has is only scored.

    Args:
        methods: the others are compared with the first.
        on_images: called with (done, total, what) after each batch, which counts new images only; False cancels.

    Raises:
        CancelledError: `on_images` returned False. What is done is in the folder.
        EngineError: a method needs layers for subjects, and the engine has none.
    """
    total, done = missing(folder, methods, prompts, settings), 0
    with _Maker(engine, settings) as maker:
        for prompt in _every(prompts):
            for method in methods:
                wanted = _unscored(folder, method, prompt, settings)
                for start in range(0, len(wanted), settings.batch):
                    seeds = wanted[start : start + settings.batch]
                    images = _images(folder, maker, method, prompt, seeds)
                    for seed, score in zip(seeds, judge.scores(prompt, images), strict=True):
                        folder.add(method, prompt, seed, score)
                    done += len(seeds)
                    if on_images and on_images(done, total, f"{method.name}, {prompt.text}") is False:
                        raise CancelledError(f"cancelled after {done} of {total} images")
    values = {
        subset: {method.name: _values(folder, method, found, settings) for method in methods}
        for subset, found in prompts.items()
    }
    return Scores(settings, tuple(methods), prompts, values)


def to_json(scores: Scores, judges: Mapping[str, str]) -> dict[str, Any]:
    """Settings, means, paired differences, and the means of every prompt. The scores of images are in the journal."""
    report: dict[str, Any] = {
        "settings": {**asdict(scores.settings), **judges},
        "methods": [method.to_json() for method in scores.methods],
        "subsets": {},
    }
    for subset, prompts in scores.prompts.items():
        means = {method.name: scores.means(subset, method.name) for method in scores.methods}
        report["subsets"][subset] = {
            "methods": {name: _named(found.mean(-1)) for name, found in means.items()},
            "compared": {
                method.name: {name: asdict(paired) for name, paired in scores.compared(subset, method.name).items()}
                for method in scores.methods[1:]
            },
            "prompts": [
                {"prompt": prompt.text, **{name: _named(found[:, i]) for name, found in means.items()}}
                for i, prompt in enumerate(prompts)
            ],
        }
    return report


class _Maker:
    """Makes batches. Keeps its session, which has recorded what a batch of one size takes."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._opened, self._sessions = ExitStack(), dict[int, Session]()

    def make(self, method: Method, prompt: Prompt, seeds: Sequence[int], steps: int | None = None) -> list[Image.Image]:
        """One RGB image per seed."""
        session = self._session(len(seeds))
        return list(session.generate(**self._arguments(method, prompt, seeds, steps), output="pil").images)

    def _arguments(self, method: Method, prompt: Prompt, seeds: Sequence[int], steps: int | None) -> dict[str, Any]:
        weights = None
        if method.thing_weight != 1:
            words = [word for phrase in prompt.phrases for word in phrase.split()]
            found = self._engine.tokenizer.find_words(prompt.text, words)
            weights = {position: method.thing_weight for positions in found.values() for position in positions}
        subjects = {"subjects": [list(prompt.phrases)] * len(seeds), **method.strengths}
        return {
            "prompt": [prompt.text] * len(seeds),
            "seed": list(seeds),
            "steps": self._settings.steps if steps is None else steps,
            "guidance_scale": self._settings.guidance_scale,
            "scheduler": self._settings.scheduler,
            "gamma_attn": method.gamma_attn,
            "gamma_norm": method.gamma_norm,
            "norm_factor": method.norm_factor,
            "token_weights": weights,
            **(subjects if method.subjects else {}),
        }

    def _session(self, batch: int) -> Session:
        if batch not in self._sessions:
            # Of the last, smaller batch of a prompt there is one size too, so two are enough.
            if len(self._sessions) == 2:
                self._opened.close()
                self._sessions.clear()
            self._sessions[batch] = self._opened.enter_context(self._engine.session(batch=batch))
        return self._sessions[batch]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()


def _images(folder: Folder, maker: _Maker, method: Method, prompt: Prompt, seeds: Sequence[int]) -> list[Image.Image]:
    """The images of a batch: those that were kept, and new ones."""
    found = {seed: folder.image(method, prompt, seed) for seed in seeds}
    absent = [seed for seed, image in found.items() if image is None]
    if absent:
        for seed, image in zip(absent, maker.make(method, prompt, absent), strict=True):
            folder.keep(method, prompt, seed, image)
            found[seed] = image
    return [image for image in found.values() if image is not None]


def _every(prompts: Prompts) -> Iterator[Prompt]:
    return (prompt for found in prompts.values() for prompt in found)


def _unscored(folder: Folder, method: Method, prompt: Prompt, settings: Settings) -> list[int]:
    return [seed for seed in settings.all_seeds if folder.score(method, prompt, seed) is None]


def _values(folder: Folder, method: Method, prompts: Sequence[Prompt], settings: Settings) -> np.ndarray:
    """MEASURES by prompts by seeds [3,p,s]."""
    values = np.empty((len(MEASURES), len(prompts), settings.seeds))
    for i, prompt in enumerate(prompts):
        for j, seed in enumerate(settings.all_seeds):
            score = folder.score(method, prompt, seed)
            assert score is not None, f"{prompt.text}, {seed} was scored"
            values[:, i, j] = [getattr(score, name) for name in MEASURES]
    return values


def _named(values: np.ndarray) -> dict[str, float]:
    return dict(zip(MEASURES, map(float, values), strict=True))
