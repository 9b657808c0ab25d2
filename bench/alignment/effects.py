"""Effects of the context update inside the UNet: how far it moves the contexts, and the energies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ebca.bench.alignment.measure import Method, Settings, arguments, chosen
from ebca.bench.alignment.scenes import Scene
from ebca.runtime.conditioning.prompts import Conditioning, PromptEncoder
from ebca.runtime.engine import Engine
from ebca.runtime.sampling.host import StepInfo


@dataclass(frozen=True)
class Effects:
    """Means over images and steps, conditional rows only.

    context_change: relative L2 distance of the contexts after the last layer from those before the first.
    attention, norm: the energy's two terms, one number per layer, in the order of the cascade.
    """

    context_change: float
    attention: tuple[float, ...]
    norm: tuple[float, ...]


def effects(engine: Engine, methods: Sequence[Method], settings: Settings) -> Mapping[str, Mapping[str, Effects]]:
    """Effects by kind and method, from one batch of each kind with the same seeds."""
    found: dict[str, dict[str, Effects]] = {}
    for kind in settings.kinds:
        scenes = chosen(kind, settings)[: settings.batch]
        for method in methods:
            found.setdefault(kind, {})[method.name] = _effects(engine, method, scenes, settings)
    return found


def _effects(engine: Engine, method: Method, scenes: Sequence[Scene], settings: Settings) -> Effects:
    count = len(scenes)
    captions = Conditioning([scene.caption() for scene in scenes])
    before = PromptEncoder(engine, count).encode(captions, guided=False).conditional
    changes: list[float] = []

    def note(info: StepInfo) -> None:
        # The first half of the rows is unconditional.
        distance = np.linalg.norm(info.contexts[count:, 0] - before, axis=(1, 2))
        changes.append(float((distance / np.linalg.norm(before, axis=(1, 2))).mean()))

    seeds = [settings.seed + i for i in range(count)]
    with engine.session(batch=count) as session:
        wanted = arguments(engine, method, scenes, seeds, settings)
        energies = session.generate(**wanted, output="latents", energies=True, on_step=note).energies
    assert energies is not None
    attention, norm = energies[:, :, :, count:, 0].mean(axis=(0, 3)).T
    return Effects(float(np.mean(changes)), tuple(map(float, attention)), tuple(map(float, norm)))
