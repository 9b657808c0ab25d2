"""Make images from the same prompts and seeds with several methods, and read them with the detector."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ebca.bench.alignment.detector import OUTCOMES, Reading, read
from ebca.bench.alignment.prompts import KINDS, SPLITS, prompts
from ebca.bench.alignment.scenes import SIZE, Scene
from ebca.bench.alignment.statistics import Paired, compare
from ebca.errors import CancelledError, ParameterError
from ebca.runtime.conditioning.schedules import Gamma
from ebca.runtime.conditioning.schedules import to_json as gamma_json
from ebca.runtime.engine import Engine
from ebca.runtime.images.outputs import to_bytes

BASE = "base"

OnImages = Callable[[int, int, str], bool | None]


@dataclass(frozen=True)
class Method:
    """What differs between the images: arguments of `Session.generate`.

    thing_weight: factor of gamma_attn on the words for colours and shapes.
    """

    name: str
    gamma_attn: Gamma = 0.0
    gamma_norm: Gamma = 0.0
    norm_factor: float = 1.0
    thing_weight: float = 1.0


@dataclass(frozen=True)
class Settings:
    """What all methods share. Image i of a kind has prompt i and seed `seed` + i."""

    split: str = "held-out"
    kinds: tuple[str, ...] = KINDS
    count: int = 100
    seed: int = 0
    steps: int = 25
    guidance_scale: float | None = None
    scheduler: str | None = "ddim"
    batch: int = 16

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ParameterError(f"split is '{self.split}'", f"choose {' or '.join(SPLITS)}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise ParameterError(f"there are no prompts of kind '{kind}'", f"choose from {', '.join(KINDS)}")
        if self.count < 1 or self.batch < 1:
            raise ParameterError(f"count is {self.count} and batch {self.batch}", "give 1 or more")


@dataclass
class Images:
    """The images of one method for one kind of prompts. Pixels [H,W,3] uint8 are kept only for a grid."""

    scenes: list[Scene]
    seeds: list[int]
    readings: list[Reading] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)

    def vector(self, measure: str) -> np.ndarray:
        """One value per image: whether "all", "exact" or "related" holds, or the share of its things with an
        outcome."""
        if measure in OUTCOMES:
            return np.array([reading.outcomes.count(measure) / len(reading.outcomes) for reading in self.readings])
        name = {"all": "all_present", "exact": "exact", "related": "related"}[measure]
        return np.array([bool(getattr(reading, name)) for reading in self.readings])


@dataclass(frozen=True)
class Alignment:
    """All images, by method and kind."""

    settings: Settings
    methods: tuple[Method, ...]
    results: Mapping[str, Mapping[str, Images]]

    def measures(self, kind: str) -> tuple[str, ...]:
        """Names for `Images.vector` that apply to a kind."""
        return ("all", "exact", *(("related",) if kind == "relation" else ()), *OUTCOMES[1:])

    def compared(self, method: str, kind: str, measure: str) -> Paired:
        """The method against the base on the same prompts and seeds."""
        base, other = self.results[self.methods[0].name][kind], self.results[method][kind]
        return compare(base.vector(measure), other.vector(measure))


def measure(
    engine: Engine,
    methods: Sequence[Method],
    settings: Settings,
    *,
    keep_images: int = 0,
    on_images: OnImages | None = None,
) -> Alignment:
    """Make and read all images.

    Args:
        methods: the others are compared with the first.
        keep_images: how many images of each kind and method to keep.
        on_images: called with (done, total, method) after each batch; False cancels.

    Raises:
        ParameterError: the engine makes images of a size that cannot be read, or two methods have the same name.
        CancelledError: `on_images` returned False.
    """
    results: dict[str, dict[str, Images]] = {method.name: {} for method in methods}
    if len(results) != len(methods):
        raise ParameterError("two methods have the same name")
    check_size(engine)
    total, done = len(methods) * len(settings.kinds) * settings.count, 0
    for kind in settings.kinds:
        wanted = chosen(kind, settings)
        for start in range(0, settings.count, settings.batch):
            scenes = wanted[start : start + settings.batch]
            seeds = [settings.seed + start + i for i in range(len(scenes))]
            # Batch by batch, so that a slow machine affects all methods alike.
            for method in methods:
                made = _images(engine, method, scenes, seeds, settings)
                held = results[method.name].setdefault(kind, Images([], []))
                held.scenes += scenes
                held.seeds += seeds
                held.readings += [read(image, scene) for image, scene in zip(made, scenes, strict=True)]
                held.images += list(made[: max(keep_images - len(held.images), 0)])
                done += len(scenes)
                if on_images and on_images(done, total, method.name) is False:
                    raise CancelledError(f"cancelled after {done} of {total} images")
    return Alignment(settings, tuple(methods), results)


def to_json(alignment: Alignment) -> dict[str, Any]:
    """Settings, shares, paired differences, and every reading."""
    report: dict[str, Any] = {
        "settings": asdict(alignment.settings),
        "methods": [_plain(method) for method in alignment.methods],
        "kinds": {},
    }
    for kind in alignment.settings.kinds:
        entry: dict[str, Any] = {"methods": {}, "compared": {}}
        for method in alignment.methods:
            held = alignment.results[method.name][kind]
            entry["methods"][method.name] = {
                measure: float(held.vector(measure).mean()) for measure in alignment.measures(kind)
            }
            if method is not alignment.methods[0]:
                entry["compared"][method.name] = {
                    measure: asdict(alignment.compared(method.name, kind, measure))
                    for measure in alignment.measures(kind)
                }
        base = alignment.results[alignment.methods[0].name][kind]
        entry["pictures"] = [
            {"prompt": scene.caption(), "seed": seed}
            | {m.name: asdict(alignment.results[m.name][kind].readings[i]) for m in alignment.methods}
            for i, (scene, seed) in enumerate(zip(base.scenes, base.seeds, strict=True))
        ]
        report["kinds"][kind] = entry
    return report


def check_size(engine: Engine) -> None:
    """Raises ParameterError for an engine that makes images of a size that cannot be read."""
    with engine.session() as session:
        if (session.height, session.width) != (SIZE, SIZE):
            raise ParameterError(
                f"'{engine.manifest.model['name']}' makes images of {session.height} x {session.width}",
                f"coloured shapes are read from {SIZE} x {SIZE}: use the engine 'shapes', or one trained with "
                "examples/shapes",
            )


def chosen(kind: str, settings: Settings) -> list[Scene]:
    """The first `count` prompts of a kind, repeated if there are fewer."""
    available = prompts(kind, settings.split)
    return [available[i % len(available)] for i in range(settings.count)]


def arguments(
    engine: Engine, method: Method, scenes: Sequence[Scene], seeds: Sequence[int], settings: Settings
) -> dict[str, Any]:
    """The arguments of `Session.generate` for these images."""
    return {
        "prompt": [scene.caption() for scene in scenes],
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "scheduler": settings.scheduler,
        "seed": seeds,
        "gamma_attn": method.gamma_attn,
        "gamma_norm": method.gamma_norm,
        "norm_factor": method.norm_factor,
        "token_weights": _weights(engine, method, scenes),
    }


def _images(
    engine: Engine, method: Method, scenes: Sequence[Scene], seeds: Sequence[int], settings: Settings
) -> np.ndarray:
    with engine.session(batch=len(scenes)) as session:
        made = session.generate(**arguments(engine, method, scenes, seeds, settings), output="np")
    return to_bytes(made.images)


def _weights(engine: Engine, method: Method, scenes: Sequence[Scene]) -> dict[str | int, float] | None:
    """Weights of the words for colours and shapes, which have the same positions in all prompts of a kind."""
    if method.thing_weight == 1:
        return None
    found = set()
    for scene in scenes:
        words = [word for thing in scene.things for word in (thing.color, thing.shape)]
        at = engine.tokenizer.find_words(scene.caption(), words)
        found.add(tuple(sorted(p for positions in at.values() for p in positions)))
    if len(found) != 1:
        raise ParameterError("the prompts of a batch do not have their words at the same positions")
    return dict.fromkeys(found.pop(), method.thing_weight)


def _plain(method: Method) -> dict[str, Any]:
    gammas = {"gamma_attn": gamma_json(method.gamma_attn), "gamma_norm": gamma_json(method.gamma_norm)}
    return {**method.__dict__, **gammas}
