"""The folder that a run writes: images, a journal of scores, and the settings that all of them share."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ebca import console
from ebca.bench.alignment.journal import Journal
from ebca.bench.alignment.methods import Method
from ebca.bench.ane.prompts import Prompt
from ebca.bench.ane.scores import Score
from ebca.errors import ParameterError
from ebca.result_files import as_parameter_errors
from ebca.runtime.images.files import save_image

_MOST_LETTERS = 100


class Folder:
    """Scores and images by method, prompt and seed.

    Args:
        path: the folder; it is made when something is written to it. None keeps scores in memory only.
        with_images: keep images too.

    Raises:
        ParameterError: the folder cannot be read or written.
    """

    def __init__(self, path: Path | None, with_images: bool = True) -> None:
        self._path, self._with_images = path, with_images and path is not None
        self._journal = Journal(None if path is None else path / "scores.jsonl")

    def guard(self, shared: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that results with these settings may be added, and write the settings down.

        Args:
            shared: JSON values that are the same for all results.
            methods: settings by method. Others may be in the folder.

        Raises:
            ParameterError: the folder holds results with other settings, or results without any.
        """
        if self._path is None:
            return
        file = self._path / "settings.json"
        before = self._settings(file)
        known: dict[str, Any] = before.get("methods", {})
        if before:
            _check_same(self._path, before["shared"], shared, "")
            for name in known.keys() & methods.keys():
                _check_same(self._path, known[name], methods[name], f"{name}: ")
        console.write_json(file, {"shared": shared, "methods": {**known, **methods}})

    def score(self, method: Method, prompt: Prompt, seed: int) -> Score | None:
        """The score of an image, or None if it has none that is sound."""
        return Score.of(self._journal.get(_facts(method, prompt, seed)))

    def add(self, method: Method, prompt: Prompt, seed: int, score: Score) -> None:
        """Write a score down."""
        self._journal.add(_facts(method, prompt, seed), score.to_json())

    def image(self, method: Method, prompt: Prompt, seed: int) -> Image.Image | None:
        """An image that was kept, or None if there is none that can be read."""
        if not self._with_images:
            return None
        try:
            with Image.open(self._file(method, prompt, seed), formats=["PNG"]) as image:
                return image.convert("RGB")
        # Pillow raises SyntaxError for some damaged files.
        except (OSError, SyntaxError, ValueError):
            return None

    def keep(self, method: Method, prompt: Prompt, seed: int, image: Image.Image) -> None:
        """Write an image down, unless images are not kept."""
        if self._with_images:
            parameters = {**_facts(method, prompt, seed), "method": method.to_json()}
            save_image(image, self._file(method, prompt, seed), parameters)

    def _file(self, method: Method, prompt: Prompt, seed: int) -> Path:
        assert self._path is not None
        return self._path / "images" / method.name / _name(prompt.text) / f"{seed}.png"

    def _settings(self, file: Path) -> dict[str, Any]:
        with as_parameter_errors(file, "settings"):
            text = file.read_text(encoding="utf-8") if file.exists() else ""
        if not text and not len(self._journal):
            return {}
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in ("shared", "methods")):
            raise ParameterError(f"'{file}' does not say how the results beside it were made", "give another --output")
        return found


def _check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    # As they come back from JSON, which has no tuples.
    now = json.loads(json.dumps(now))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ParameterError(
                f"'{path}' holds results of {what}{name} {_short(before.get(name))}, not {_short(now.get(name))}",
                "give another --output, or the options of those results",
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]}..."


def _facts(method: Method, prompt: Prompt, seed: int) -> dict[str, Any]:
    return {"method": method.name, "prompt": prompt.text, "seed": seed}


def _name(text: str) -> str:
    """A prompt as the name of a folder: itself if every file system takes it."""
    plain = re.sub(r"[^A-Za-z0-9 _-]", "_", text).strip()[:_MOST_LETTERS]
    return plain if plain == text else f"{plain} {hashlib.sha256(text.encode()).hexdigest()[:8]}"
