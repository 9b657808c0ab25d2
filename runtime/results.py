"""The results of a session."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ebca.errors import ParameterError
from ebca.runtime.images.files import check_image_path, expanded, numbered, save_image
from ebca.runtime.images.outputs import sheet, to_pil
from ebca.runtime.shown import shown


@dataclass(frozen=True, repr=False)
class Result:
    """Result of `Session.generate`. Notebooks show its images.

    Attributes:
        images: list of PIL images, float32 array [n,H,W,3] in [0, 1], or None for output="latents".
        latents: [n,C,h,w] float32, scaled.
        energies: [evaluations,L,2,B,S] float32 (attention, norm) or None; see
            `ebca.runtime.telemetry.energies.Energies`.
        attention_maps: [n,T,h,w] float32 or None; see `ebca.runtime.telemetry.attention_maps.AttentionMaps`.
        timesteps: one per evaluation.
        timings: seconds per stage; "unet_steps" is a list with one value per evaluation.
        parameters: everything needed to reproduce the images, except arrays and images that were passed in; see
            `ebca.runtime.request.serialization.from_parameters`.
    """

    images: Any
    latents: np.ndarray
    energies: np.ndarray | None
    attention_maps: np.ndarray | None
    timesteps: tuple[float, ...]
    timings: Mapping[str, Any]
    parameters: Mapping[str, Any]

    def save(self, path: str | Path, *, quality: int | None = None) -> list[Path]:
        """Write the images with their parameters, which `ebca.read_parameters` reads; see there for the formats.

        Args:
            path: a .png, .jpg, .jpeg or .webp file; several images get -0, -1, ... before the suffix. Folders that are
                missing are created.
            quality: of JPEG (default 95), or of WebP (default: lossless); 1 to 100.

        Returns:
            The files, one per image.

        Raises:
            ParameterError: a result without images, another suffix, or a file that cannot be written. What can be
                checked is checked before the first file is written.
        """
        images = self._as_pil()
        if not images:
            raise ParameterError(
                "a result of output='latents' has no images to save",
                "generate with output='pil', or save `result.latents` with numpy.save",
            )
        paths = numbered(expanded(path), len(images))
        for one in paths:
            check_image_path(one)
        return [
            save_image(image, one, {**self.parameters, "image_index": index}, quality=quality)
            for index, (image, one) in enumerate(zip(images, paths, strict=True))
        ]

    def __repr__(self) -> str:
        images, recorded = self._as_pil(), self.parameters
        if images:
            count = "1 image" if len(images) == 1 else f"{len(images)} images"
            parts = [f"{count} of {images[0].width}x{images[0].height}"]
        else:
            parts = [f"latents {shown(self.latents)}"]
        for name in ("energies", "attention_maps"):
            if getattr(self, name) is not None:
                parts.append(f"{name} {shown(getattr(self, name))}")
        known = ("task", "prompt", "steps", "seed", "model")
        parts += [f"{name}={shown(recorded[name])}" for name in known if recorded.get(name) is not None]
        return f"<ebca.Result: {', '.join(parts)}, {_total(self.timings):.2f} s>"

    def _repr_png_(self) -> bytes | None:
        """All images as one PNG, which notebooks show; None without images."""
        images = self._as_pil()
        if not images:
            return None
        buffer = io.BytesIO()
        sheet(images).save(buffer, "PNG")
        return buffer.getvalue()

    def _as_pil(self) -> list[Image.Image]:
        """The images; none for output="latents"."""
        if self.images is None:
            return []
        return to_pil(self.images) if isinstance(self.images, np.ndarray) else list(self.images)


@dataclass(frozen=True, repr=False)
class Inverted:
    """Result of `Session.invert`.

    Attributes:
        latents: [n,C,h,w] float32; DDIM sampling from them reproduces the image.
        timings: seconds per stage; "unet_steps" is a list with one value per evaluation.
    """

    latents: np.ndarray
    timings: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<ebca.Inverted: latents {shown(self.latents)}, {_total(self.timings):.2f} s>"


def _total(timings: Mapping[str, Any]) -> float:
    """Seconds of all stages."""
    return float(sum(sum(value) if isinstance(value, list | tuple) else value for value in timings.values()))
