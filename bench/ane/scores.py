"""How well an image shows a prompt of two things, by CLIP and by a caption."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ebca.bench.ane.prompts import Prompt
from ebca.bench.judges.clip import unit

MEASURES = {"full": "image and prompt", "minimum": "image and worse half", "caption": "caption and prompt"}
"""Names of the measures, and their titles. All are cosines of directions in CLIP's space."""

# The prompts have articles of their own. CLIP's directions of one sentence are noisy, their mean is less so.
TEMPLATES = (
    "{}.",
    "an image of {}.",
    "a photo of {}.",
    "a photograph of {}.",
    "a picture showing {}.",
    "a good photo of {}.",
    "a bad photo of {}.",
    "a bright photo of {}.",
    "a dark photo of {}.",
    "a blurry photo of {}.",
    "a sharp photo of {}.",
    "a close-up of {}.",
    "a photo of {} from afar.",
    "a cropped photo of {}.",
    "a black and white photo of {}.",
    "a drawing of {}.",
    "a painting of {}.",
    "a rendering of {}.",
    "a cartoon of {}.",
    "an artwork of {}.",
)


class ImagesAndTexts(Protocol):
    """What `Clip` does."""

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Directions [n,D]."""
        ...

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Directions [n,D]."""
        ...


@dataclass(frozen=True)
class Score:
    """Of one image.

    full: cosine of the image and the prompt.
    first, second: cosine of the image and each half of the prompt.
    caption: cosine of the caption and the prompt.
    text: what the captioner says.
    """

    full: float
    first: float
    second: float
    caption: float
    text: str

    @property
    def minimum(self) -> float:
        """Of both halves: small if either thing is missing."""
        return min(self.first, self.second)

    @classmethod
    def of(cls, record: Any) -> "Score | None":
        """From `to_json`; None for anything else."""
        numbers = ("full", "first", "second", "caption")
        if not isinstance(record, dict) or set(record) != {*numbers, "text"} or not isinstance(record["text"], str):
            return None
        sound = all(isinstance(record[name], float) and math.isfinite(record[name]) for name in numbers)
        return cls(**record) if sound else None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class Judge:
    """Scores images.

    Args:
        clip: returns a CLIP model. It is called when the first image is scored.
        captions: returns what makes one caption per image, likewise.
    """

    def __init__(
        self,
        clip: Callable[[], ImagesAndTexts],
        captions: Callable[[], Callable[[Sequence[Image.Image]], list[str]]],
    ) -> None:
        self._load_clip, self._load_captions = clip, captions
        self._directions: dict[str, np.ndarray] = {}

    @cached_property
    def _clip(self) -> ImagesAndTexts:
        return self._load_clip()

    @cached_property
    def _captions(self) -> Callable[[Sequence[Image.Image]], list[str]]:
        return self._load_captions()

    def load(self) -> None:
        """Load both models now. Raises what the functions that load them raise."""
        _ = self._clip, self._captions

    def scores(self, prompt: Prompt, images: Sequence[Image.Image]) -> list[Score]:
        """One score per image of a prompt."""
        wanted = np.stack([self._direction(text) for text in (prompt.text, *prompt.halves)]).astype(np.float64)
        texts = self._captions(images)
        seen = self._clip.images(images) @ wanted.T
        said = self._clip.texts(texts) @ wanted[0]
        return [
            Score(float(full), float(first), float(second), float(caption), text)
            for (full, first, second), caption, text in zip(seen, said, texts, strict=True)
        ]

    def _direction(self, text: str) -> np.ndarray:
        """The mean direction [D] of a text in all templates, unit length."""
        if text not in self._directions:
            rows = self._clip.texts([template.format(text) for template in TEMPLATES])
            self._directions[text] = unit(rows.astype(np.float64).mean(0, keepdims=True))[0]
        return self._directions[text]
