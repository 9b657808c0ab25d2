"""From arrays to images and PNG files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from ebca.errors import ParameterError

TEXT_KEY = "ebca"
"""The PNG text chunk that holds the parameters."""


def to_unit_range(decoded: np.ndarray) -> np.ndarray:
    """[n,3,H,W] in [-1, 1] -> [n,H,W,3] in [0, 1], float32."""
    return np.clip(decoded * 0.5 + 0.5, 0.0, 1.0).transpose(0, 2, 3, 1)


def to_bytes(images: np.ndarray) -> np.ndarray:
    """[...] in [0, 1] -> [...] uint8, rounded."""
    return np.rint(images * 255).astype(np.uint8)


def to_pil(images: np.ndarray) -> list[Image.Image]:
    """[n,H,W,3] in [0, 1] -> RGB images."""
    return [Image.fromarray(image) for image in to_bytes(images)]


def save_png(image: Image.Image, path: Path, parameters: Mapping[str, Any]) -> None:
    """Write a PNG atomically, with `parameters` as JSON in its text chunk "ebca".

    Raises:
        ParameterError: the file cannot be written.
    """
    text = PngImagePlugin.PngInfo()
    described = json.dumps(parameters, ensure_ascii=False)
    if not described.isprintable() and any("\ud800" <= character <= "\udfff" for character in described):
        # A file name that is not valid Unicode; escaped, it can be stored.
        described = json.dumps(parameters)
    text.add_itxt(TEXT_KEY, described)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        image.save(temporary, "PNG", pnginfo=text)
        temporary.replace(path)
    except OSError as error:
        raise ParameterError(
            f"cannot write '{path}': {error.strerror or error}", "name a file in a writable folder"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def read_parameters(path: Path) -> dict[str, Any]:
    """Read the parameters that `save_png` stored.

    Raises:
        ParameterError: not a PNG file written by ebca.
    """
    try:
        with Image.open(path) as image:
            return dict(json.loads(image.text[TEXT_KEY]))  # type: ignore[attr-defined]
    except (OSError, KeyError, AttributeError, TypeError, ValueError):
        raise ParameterError(f"'{path}' is not a PNG file written by ebca", "name a file that ebca-run wrote") from None
