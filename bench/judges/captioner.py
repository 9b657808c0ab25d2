"""A captioner: one sentence about an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ebca.bench.judges.loading import check_complete, check_device, check_packages, loaded

_BATCH = 32
_MOST_TOKENS = 30


class Captioner:
    """A BLIP captioner, in evaluation mode.

    Args:
        model: transformers' BlipForConditionalGeneration.
        processor: makes pixel values from RGB images.
        tokenizer: makes texts from token ids.
        device: where the model is, as PyTorch names it.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any, device: str) -> None:
        self._model, self._processor, self._tokenizer, self._device = model, processor, tokenizer, device

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> Captioner:
        """Load a model in float32.

        Args:
            name: a folder, or the model's name on the hub.
            device: cpu, cuda, cuda:1 and so on.

        Raises:
            BackendError: PyTorch or transformers is missing, or PyTorch cannot use the device.
            ModelError: the model is missing, cannot be reached, or is no BLIP model.
        """
        check_packages("the captioner")
        check_device(device)

        def load() -> Captioner:
            # Importing the image processor logs which of its two forms is taken.
            from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessor

            model, told = BlipForConditionalGeneration.from_pretrained(name, dtype="float32", output_loading_info=True)
            check_complete(model, told, name, "captioner")
            processor = BlipImageProcessor.from_pretrained(name)
            return cls(model.to(device).eval(), processor, AutoTokenizer.from_pretrained(name), device)

        return loaded(name, "captioner", "blip", load)

    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption per image, chosen greedily, so that captions can be reproduced."""
        rgb = [image.convert("RGB") for image in images]
        return [text for at in range(0, len(rgb), _BATCH) for text in self._captions(rgb[at : at + _BATCH])]

    def _captions(self, images: list[Image.Image]) -> list[str]:
        import torch

        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._device)
        with torch.inference_mode():
            ids = self._model.generate(pixel_values=pixels, max_new_tokens=_MOST_TOKENS, num_beams=1, do_sample=False)
        return [text.strip() for text in self._tokenizer.batch_decode(ids, skip_special_tokens=True)]
