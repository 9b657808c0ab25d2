"""LPIPS: how much of an image has changed to the eye, in all of it or in its background."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from PIL import Image

from ebca.bench.judges.loading import check_device
from ebca.errors import BackendError, ModelError

NETS: Final = ("alex", "vgg", "squeeze")
INSTALL: Final = 'run `pip install "ebca[lpips]"`'


def available() -> bool:
    """Whether the package `lpips` is installed."""
    return find_spec("lpips") is not None


class Lpips:
    """The measure of Zhang et al. 2018, version 0.1.

    Args:
        model: lpips.LPIPS that gives a map of distances (`spatial=True`).
        device: where the model is, as PyTorch names it.
    """

    def __init__(self, model: Any, device: str) -> None:
        self._model, self._device = model, device

    @classmethod
    def load(cls, net: str = NETS[0], device: str = "cpu") -> Lpips:
        """Load one of NETS. The package downloads the weights of the net the first time.

        Raises:
            BackendError: the package is missing, or PyTorch cannot use the device.
            ModelError: there is no such net, or its weights are missing and cannot be downloaded.
        """
        if not available():
            raise BackendError("LPIPS needs lpips", INSTALL)
        if net not in NETS:
            raise ModelError(f"LPIPS has no net '{net}'", f"choose from {', '.join(NETS)}")
        check_device(device)
        import lpips

        try:
            model = lpips.LPIPS(net=net, spatial=True, verbose=False)
        # The download raises errors of several libraries.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"cannot load the weights of LPIPS '{net}': {reason}",
                "check the network, or copy them to the folder of torch.hub from a machine that has them",
            ) from None
        return cls(model.to(device).eval(), device)

    def distances(
        self, before: Sequence[Image.Image], after: Sequence[Image.Image], objects: Sequence[np.ndarray | None]
    ) -> np.ndarray:
        """The distances of n pairs of images of one size, float64 [n].

        Args:
            before, after: the pairs.
            objects: for each pair None for the whole image, or bool [H,W], True inside the object. The object is made
                grey in both images, so that a change in it cannot reach the background through the receptive fields of
                the net, and the map of distances is averaged outside it.
        """
        pairs = zip(before, after, objects, strict=True)
        return np.array([self._distance(a, b, inside) for a, b, inside in pairs], np.float64)

    def _distance(self, before: Image.Image, after: Image.Image, inside: np.ndarray | None) -> float:
        import torch

        tensors = [torch.from_numpy(pixels(image, inside)).to(self._device) for image in (before, after)]
        with torch.inference_mode():
            found = np.asarray(self._model(*tensors).float().cpu(), np.float64)[0, 0]
        return float(found.mean() if inside is None else found[~inside].mean())


def pixels(image: Image.Image, inside: np.ndarray | None = None) -> np.ndarray:
    """An image as float32 [1,3,H,W] in [-1,1], 0 in the object."""
    values = np.array(image.convert("RGB"), np.float32) / 127.5 - 1.0
    if inside is not None:
        values[inside] = 0.0
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])
