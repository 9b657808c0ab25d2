"""Edit the images, and keep what is made."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ebca.bench.alignment.journal import Journal
from ebca.bench.edit.cases import Case, digest, load_image
from ebca.bench.edit.recipes import SWAP, Settings
from ebca.console import write_json
from ebca.errors import ParameterError
from ebca.result_files import reason_of, replacing
from ebca.runtime.engine import Engine
from ebca.runtime.session import Session

OnImages = Callable[[str, int], None]
"""Called with what was done, and for how many images."""


@dataclass(frozen=True)
class Item:
    """One image, edited with one method."""

    case: Case
    index: int
    method: str

    @property
    def source(self) -> Path:
        return self.case.images[self.index]

    def file(self, output: Path) -> Path:
        """Where the edited image is."""
        return output / "images" / self.case.name / self.method / f"{self.source.stem}.png"


class Edits:
    """The edited images of a folder of results.

    Args:
        output: the folder.
        journal: what has been made; an entry counts only while its file is as it was written.

    Raises:
        ParameterError: the folder cannot be used.
    """

    def __init__(self, output: Path, journal: Journal) -> None:
        self._output, self._journal = output, journal

    def record(self, item: Item) -> dict[str, Any] | None:
        """sha256 and seconds of an edited image, or None if it must be made."""
        found = self._journal.get(_facts(item))
        file = item.file(self._output)
        if not isinstance(found, dict) or not {"sha256", "seconds"} <= found.keys() or not file.is_file():
            return None
        return found if digest(file) == found["sha256"] else None

    def image(self, item: Item) -> Image.Image:
        """An edited image that has been made."""
        with Image.open(item.file(self._output)) as image:
            return image.convert("RGB")

    def make(
        self,
        engine: Engine,
        items: Sequence[Item],
        settings: Settings,
        batch: int,
        size: tuple[int, int],
        on_images: OnImages,
    ) -> None:
        """Make every image that is missing, case by case, in batches of images that share their inversions."""
        waiting: dict[tuple[str, int], list[Item]] = {}
        for item in items:
            if self.record(item) is None:
                waiting.setdefault((item.case.name, item.index), []).append(item)
        groups: dict[tuple[str, tuple[str, ...]], list[list[Item]]] = {}
        for (name, _), found in waiting.items():
            groups.setdefault((name, tuple(item.method for item in found)), []).append(found)
        with _Sessions(engine) as sessions:
            for group in groups.values():
                for start in range(0, len(group), batch):
                    some = group[start : start + batch]
                    self._make_batch(sessions.of(len(some)), some, settings, size, on_images)

    def _make_batch(
        self,
        session: Session,
        rows: Sequence[Sequence[Item]],
        settings: Settings,
        size: tuple[int, int],
        on_images: OnImages,
    ) -> None:
        """Edit images [rows] with the same methods [columns]."""
        case = rows[0][0].case
        images = [load_image(row[0].source, size) for row in rows]
        inverted: dict[bool, tuple[np.ndarray, float]] = {}
        for column in zip(*rows, strict=True):
            method = column[0].method
            regularize = method != SWAP and settings.regularize
            if regularize not in inverted:
                began = time.perf_counter()
                found = session.invert(
                    images, [case.source] * len(images), steps=settings.steps, regularize=regularize
                ).latents
                inverted[regularize] = found, time.perf_counter() - began
            latents, inversion = inverted[regularize]
            began = time.perf_counter()
            made = session.generate(
                **texts(case, method, len(images)),
                latents=latents,
                steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                scheduler="ddim",
            ).images
            # The inversion counts for every method that needs it, shared or not.
            seconds = (time.perf_counter() - began + inversion) / len(images)
            for item, image in zip(column, made, strict=True):
                self._keep(item, image, seconds)
            on_images(f"{case.name}, {method}", len(images))

    def _keep(self, item: Item, image: Image.Image, seconds: float) -> None:
        file = item.file(self._output)
        with replacing(file) as stream:
            image.save(stream, "PNG")
        self._journal.add(_facts(item), {"sha256": digest(file), "seconds": seconds})


def texts(case: Case, method: str, count: int) -> dict[str, Any]:
    """Prompts and editing prompts of a method, as `Session.generate` takes them."""
    if method == SWAP:
        return {"prompt": [case.target] * count}
    # As in the authors' code: guidance acts only on the difference between the edit and the source.
    source = [case.source] * count
    edits = case.recipe.edits(case.add, case.remove, update=method != "ebcq")
    return {"prompt": source, "negative_prompt": source, "edits": edits}


class _Sessions:
    """One open session at a time, for batches of one size."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._stack = engine, ExitStack()
        self._session: Session | None = None
        self._batch = 0

    def __enter__(self) -> "_Sessions":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def of(self, batch: int) -> Session:
        if self._session is None or self._batch != batch:
            self._stack.close()
            self._session, self._batch = self._stack.enter_context(self._engine.session(batch=batch)), batch
        return self._session


def guard(output: Path, engine: Engine, cases: Sequence[Case], settings: Settings) -> None:
    """Write how a folder's images are made, or check that they were made so.

    Cases and images may be added later, but none may be made in another way.

    Raises:
        ParameterError: the folder holds results of other settings, or cannot be used.
    """
    file = output / "settings.json"
    now: dict[str, Any] = {
        "engine": hashlib.sha256(engine.manifest.to_json().encode()).hexdigest(),
        "computed": [engine.backend.name, engine.precision],
        **asdict(settings),
    }
    now["cases"] = {case.name: _described(case) for case in cases}
    # As they come back from the file.
    now = json.loads(json.dumps(now))
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            known = before.pop("cases").items()
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ParameterError(f"'{file}' cannot be read: {reason_of(error)}", "name another --output") from None
        differ = [name for name in now if name != "cases" and before.get(name) != now[name]]
        differ += [f"case '{name}'" for name, case in known if now["cases"].get(name, case) != case]
        if differ:
            raise ParameterError(
                f"'{output}' holds results of other settings ({', '.join(differ)})",
                "name another --output, or give the same settings",
            )
        now["cases"] = {**dict(known), **now["cases"]}
    write_json(file, now)


def _described(case: Case) -> dict[str, Any]:
    """What decides how a case's images are made, beside the images."""
    names = ("source", "target", "recipe", "add", "remove")
    return {name: value for name, value in asdict(case).items() if name in names}


def _facts(item: Item) -> dict[str, Any]:
    return {"case": item.case.name, "image": item.source.name, "from": digest(item.source), "method": item.method}
