"""DINO: how much the structure of an image has changed.

The structure distance of Splice (Tumanyan et al. 2022), which pix2pix-zero reports. The keys of the last attention
layer of a DINO ViT, heads concatenated, class token included, give each image a matrix of cosine similarities between
its tokens. The distance is the mean squared difference of two such matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ebca.bench.judges.loading import check_complete, check_device, check_packages, loaded

# transformers 4 and 5 name the projection differently.
_KEYS = (".key", ".k_proj")


class Dino:
    """A DINO ViT with its image processor, in evaluation mode.

    Args:
        model: transformers' ViTModel.
        processor: makes pixel values from RGB images.
        device: where the model is, as PyTorch names it.
    """

    def __init__(self, model: Any, processor: Any, device: str) -> None:
        self._model, self._processor, self._device = model, processor, device
        self._projection = [module for name, module in model.named_modules() if name.endswith(_KEYS)][-1]

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> Dino:
        """Load a model in float32.

        Args:
            name: a folder, or the model's name on the hub.
            device: cpu, cuda, cuda:1 and so on.

        Raises:
            BackendError: PyTorch or transformers is missing, or PyTorch cannot use the device.
            ModelError: the model is missing, cannot be reached, or is no ViT.
        """
        check_packages("the structure distance")
        check_device(device)

        def load() -> Dino:
            # Importing the image processor logs which of its two forms is taken.
            from transformers import ViTImageProcessor, ViTModel

            model, told = ViTModel.from_pretrained(
                name, dtype="float32", add_pooling_layer=False, output_loading_info=True
            )
            check_complete(model, told, name, "DINO ViT")
            return cls(model.to(device).eval(), ViTImageProcessor.from_pretrained(name), device)

        return loaded(name, "DINO ViT", "vit", load)

    def keys(self, image: Image.Image) -> np.ndarray:
        """The keys of the last layer [T,D], float32: the class token, then the patches by rows."""
        import torch

        pixels = self._processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"].to(self._device)
        found: list[Any] = []
        hook = self._projection.register_forward_hook(lambda _module, _inputs, output: found.append(output))
        try:
            with torch.inference_mode():
                self._model(pixel_values=pixels)
        finally:
            hook.remove()
        return np.asarray(found[-1][0].float().cpu())

    def distances(self, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> np.ndarray:
        """The structure distances of n pairs of images, float64 [n]; 0 for the same structure, at most 4."""
        pairs = zip(before, after, strict=True)
        return np.array([structure_distance(self.keys(a), self.keys(b)) for a, b in pairs], np.float64)


def structure_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The mean squared difference between the cosine similarities of the rows of two [T,D] arrays of keys."""
    return float(np.square(_similarities(a) - _similarities(b)).mean())


def _similarities(keys: np.ndarray) -> np.ndarray:
    wide = np.asarray(keys, np.float64)
    # As in Splice, keys of length zero are similar to nothing.
    unit = wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-8)
    return np.asarray(unit @ unit.T)
