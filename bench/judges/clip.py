"""CLIP: directions of images and texts in one space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ebca.bench.judges.loading import check_complete, check_device, check_packages, loaded

T = TypeVar("T")

_BATCH = 64


class Clip:
    """A CLIP model with its image processor and tokenizer, in evaluation mode.

    Args:
        model: transformers' CLIPModel.
        processor: makes pixel values from RGB images.
        tokenizer: makes token ids from texts.
        device: where the model is, as PyTorch names it.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any, device: str) -> None:
        self._model, self._processor, self._tokenizer, self._device = model, processor, tokenizer, device

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> Clip:
        """Load a model in float32.

        Args:
            name: a folder, or the model's name on the hub.
            device: cpu, cuda, cuda:1 and so on.

        Raises:
            BackendError: PyTorch or transformers is missing, or PyTorch cannot use the device.
            ModelError: the model is missing, cannot be reached, or is no CLIP model.
        """
        check_packages("CLIP")
        check_device(device)

        def load() -> Clip:
            # Importing the image processor logs which of its two forms is taken.
            from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

            model, told = CLIPModel.from_pretrained(name, dtype="float32", output_loading_info=True)
            check_complete(model, told, name, "CLIP model")
            processor = CLIPImageProcessor.from_pretrained(name)
            tokenizer = CLIPTokenizerFast.from_pretrained(name)
            return cls(model.to(device).eval(), processor, tokenizer, device)

        return loaded(name, "CLIP model", "clip", load)

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """The directions of images [n,D], float32, unit length."""
        rgb = [image.convert("RGB") for image in images]
        return self._rows([self._image_rows(part) for part in _parts(rgb)])

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """The directions of texts [n,D], float32, unit length. Texts longer than the model's limit are cut off."""
        return self._rows([self._text_rows(part) for part in _parts(list(texts))])

    def _image_rows(self, images: Sequence[Image.Image]) -> np.ndarray:
        import torch

        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"].to(self._device)
        with torch.inference_mode():
            pooled = self._model.vision_model(pixel_values=pixels).pooler_output
            return _array(self._model.visual_projection(pooled))

    def _text_rows(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        limit = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt").to(
            self._device
        )
        with torch.inference_mode():
            pooled = self._model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            return _array(self._model.text_projection(pooled))

    def _rows(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        if not parts:
            return np.zeros((0, self._model.config.projection_dim), np.float32)
        return unit(np.concatenate(parts))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [n,D] of any length, scaled to unit length; float32."""
    wide = np.asarray(rows, np.float64)
    return (wide / np.linalg.norm(wide, axis=-1, keepdims=True)).astype(np.float32)


def _array(rows: Any) -> np.ndarray:
    return np.asarray(rows.float().cpu())


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]
