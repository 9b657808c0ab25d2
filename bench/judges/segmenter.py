"""CLIPSeg: where in an image a text applies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ebca.bench.judges.loading import check_complete, check_device, check_packages, loaded

_BATCH = 16


class Segmenter:
    """A CLIPSeg model with its image processor and tokenizer, in evaluation mode.

    Args:
        model: transformers' CLIPSegForImageSegmentation.
        processor: makes pixel values from RGB images; it scales the whole image and cuts nothing off.
        tokenizer: makes token ids from texts.
        device: where the model is, as PyTorch names it.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any, device: str) -> None:
        self._model, self._processor, self._tokenizer, self._device = model, processor, tokenizer, device

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> Segmenter:
        """Load a model in float32.

        Args:
            name: a folder, or the model's name on the hub.
            device: cpu, cuda, cuda:1 and so on.

        Raises:
            BackendError: PyTorch or transformers is missing, or PyTorch cannot use the device.
            ModelError: the model is missing, cannot be reached, or is no CLIPSeg model.
        """
        check_packages("the detection of objects")
        check_device(device)

        def load() -> Segmenter:
            # Importing the image processor logs which of its two forms is taken.
            from transformers import CLIPSegForImageSegmentation, CLIPTokenizerFast, ViTImageProcessor

            model, told = CLIPSegForImageSegmentation.from_pretrained(name, dtype="float32", output_loading_info=True)
            check_complete(model, told, name, "CLIPSeg model")
            tokenizer = CLIPTokenizerFast.from_pretrained(name)
            return cls(model.to(device).eval(), ViTImageProcessor.from_pretrained(name), tokenizer, device)

        return loaded(name, "CLIPSeg model", "clipseg", load)

    def probabilities(self, images: Sequence[Image.Image], text: str) -> list[np.ndarray]:
        """How probable it is that a pixel belongs to what the text says: one float32 [H,W] per image, of its size."""
        rgb = [image.convert("RGB") for image in images]
        return [found for at in range(0, len(rgb), _BATCH) for found in self._batch(rgb[at : at + _BATCH], text)]

    def _batch(self, images: list[Image.Image], text: str) -> list[np.ndarray]:
        import torch

        limit = self._model.config.text_config.max_position_embeddings
        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._device)
        tokens = self._tokenizer([text] * len(images), truncation=True, max_length=limit, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(pixel_values=pixels, **tokens.to(self._device)).logits
        # One image may come without its first axis.
        logits = logits.reshape(len(images), 1, *logits.shape[-2:]).float().cpu()
        return [self._scaled(one[None], image.size) for one, image in zip(logits, images, strict=True)]

    @staticmethod
    def _scaled(logits: Any, size: tuple[int, int]) -> np.ndarray:
        import torch

        scaled = torch.nn.functional.interpolate(logits, size=(size[1], size[0]), mode="bilinear", align_corners=False)
        return np.asarray(torch.sigmoid(scaled)[0, 0])
