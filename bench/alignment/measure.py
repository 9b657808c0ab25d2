"""Make images from the same prompts and seeds with several methods, and read them with the detector."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ebca.bench.alignment.detector import Reading, read
from ebca.bench.alignment.journal import Journal
from ebca.bench.alignment.methods import Method
from ebca.bench.alignment.prompts import KINDS, SPLITS, prompts
from ebca.bench.alignment.readings import from_text, measures, to_text, vector
from ebca.bench.alignment.scenes import SIZE, Scene
from ebca.bench.alignment.statistics import Paired, compare
from ebca.errors import CancelledError, ParameterError
from ebca.runtime.engine import Engine
from ebca.runtime.images.outputs import to_bytes

OnImages = Callable[[int, int, str], bool | None]


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
    """The images of one method for one kind of prompts. Pixels [H,W,3] uint8 are kept only for a grid.

    digests: one short text per image, the same for the same pixels.
    """

    scenes: list[Scene]
    seeds: list[int]
    readings: list[Reading] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)

    def vector(self, measure: str) -> np.ndarray:
        """One value per image, see `readings.vector`."""
        return vector(self.readings, measure)


@dataclass(frozen=True)
class Alignment:
    """All images, by method and kind."""

    settings: Settings
    methods: tuple[Method, ...]
    results: Mapping[str, Mapping[str, Images]]

    def measures(self, kind: str) -> tuple[str, ...]:
        """Names for `Images.vector` that apply to a kind."""
        return measures(kind)

    def compared(self, method: str, kind: str, measure: str) -> Paired:
        """The method against the base on the same prompts and seeds."""
        base, other = self.results[self.methods[0].name][kind], self.results[method][kind]
        return compare(base.vector(measure), other.vector(measure))

    def identical(self, method: str, kind: str) -> int:
        """Images of the method whose pixels are those of the base."""
        base, other = self.results[self.methods[0].name][kind], self.results[method][kind]
        return sum(a == b for a, b in zip(base.digests, other.digests, strict=True))


def measure(
    engine: Engine,
    methods: Sequence[Method],
    settings: Settings,
    *,
    keep_images: int = 0,
    on_images: OnImages | None = None,
    journal: Journal | None = None,
) -> Alignment:
    """Make and read all images.

    Args:
        methods: the others are compared with the first.
        keep_images: how many images of each kind and method to keep.
        on_images: called with (done, total, method) after each batch; False cancels.
        journal: batches that are in it are not made again, unless their images are to be kept; others are added.

    Raises:
        ParameterError: the engine makes images of a size that cannot be read, or two methods have the same name.
        CancelledError: `on_images` returned False.
    """
    results: dict[str, dict[str, Images]] = {method.name: {} for method in methods}
    if len(results) != len(methods):
        raise ParameterError("two methods have the same name")
    check_size(engine)
    total, done = len(methods) * len(settings.kinds) * settings.count, 0
    batches = _Batches(engine, settings, Journal(None) if journal is None else journal)
    for kind in settings.kinds:
        wanted = chosen(kind, settings)
        for start in range(0, settings.count, settings.batch):
            scenes = wanted[start : start + settings.batch]
            seeds = [settings.seed + start + i for i in range(len(scenes))]
            # Batch by batch, so that a slow machine affects all methods alike.
            for method in methods:
                held = results[method.name].setdefault(kind, Images([], []))
                batches.add(held, method, scenes, seeds, max(keep_images - len(held.images), 0))
                done += len(scenes)
                if on_images and on_images(done, total, method.name) is False:
                    raise CancelledError(f"cancelled after {done} of {total} images")
    return Alignment(settings, tuple(methods), results)


def to_json(alignment: Alignment) -> dict[str, Any]:
    """Settings, shares, paired differences, and every reading."""
    report: dict[str, Any] = {
        "settings": asdict(alignment.settings),
        "methods": [method.to_json() for method in alignment.methods],
        "kinds": {},
    }
    for kind in alignment.settings.kinds:
        entry: dict[str, Any] = {"methods": {}, "compared": {}, "identical": {}}
        for method in alignment.methods:
            held = alignment.results[method.name][kind]
            entry["methods"][method.name] = {
                measure: float(held.vector(measure).mean()) for measure in alignment.measures(kind)
            }
            if method is not alignment.methods[0]:
                entry["identical"][method.name] = alignment.identical(method.name, kind)
                entry["compared"][method.name] = {
                    measure: asdict(alignment.compared(method.name, kind, measure))
                    for measure in alignment.measures(kind)
                }
        base = alignment.results[alignment.methods[0].name][kind]
        entry["images"] = [
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
    subjects = {
        "subjects": [[f"{thing.color} {thing.shape}" for thing in scene.things] for scene in scenes],
        **method.strengths,
    }
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
        **(subjects if method.subjects else {}),
    }


class _Batches:
    """Makes and reads batches, or takes their readings from a journal."""

    def __init__(self, engine: Engine, settings: Settings, journal: Journal) -> None:
        self._engine, self._settings, self._journal = engine, settings, journal
        manifest = hashlib.sha256(engine.manifest.to_json().encode()).hexdigest()
        shared = ("steps", "guidance_scale", "scheduler")
        self._facts = {"manifest": manifest, **{name: getattr(settings, name) for name in shared}}

    def add(self, held: Images, method: Method, scenes: list[Scene], seeds: list[int], keep: int) -> None:
        """Add a batch to the images of its method, the first `keep` of them with their pixels."""
        facts = {**self._facts, "method": method.to_json(), "captions": [s.caption() for s in scenes], "seeds": seeds}
        record = self._journal.get(facts)
        if record is None or keep:
            made = self._made(method, scenes, seeds)
            digests = [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in made]
            record = {"readings": to_text([read(*pair) for pair in zip(made, scenes, strict=True)]), "digests": digests}
            self._journal.add(facts, record)
            held.images += list(made[:keep])
        held.scenes += scenes
        held.seeds += seeds
        held.readings += from_text(record["readings"])
        held.digests += record["digests"]

    def _made(self, method: Method, scenes: Sequence[Scene], seeds: Sequence[int]) -> np.ndarray:
        with self._engine.session(batch=len(scenes)) as session:
            wanted = arguments(self._engine, method, scenes, seeds, self._settings)
            made = session.generate(**wanted, output="np")
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
