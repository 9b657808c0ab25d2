"""Images in a request's JSON: from base64, never from the service's own files, and never larger than allowed."""

import base64
import io
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from ebca.errors import ParameterError
from ebca.runtime.images.pixels import opened
from ebca.runtime.serving.errors import TooLargeError, UnreadableError
from ebca.runtime.serving.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:image/[a-z+.-]{1,20};base64,", re.IGNORECASE)


def image_of(name: str, data: bytes, limits: Limits) -> Image.Image:
    """Bytes of a PNG, JPEG or WebP file -> an image in mode RGB or RGBA, turned as its EXIF orientation says.

    The size is checked before pixels are decoded.

    Raises:
        UnreadableError: not such a file, or one that is not complete.
        TooLargeError: more pixels than allowed.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > limits.upload_pixels:
                raise TooLargeError(
                    f"{name} has {image.width}x{image.height} pixels",
                    f"this service takes at most {limits.upload_pixels} pixels per image; make it smaller before",
                )
            image.load()
            return opened(name, image)
    except (TooLargeError, ParameterError):
        raise
    except Image.DecompressionBombError:
        raise TooLargeError(f"{name} has far too many pixels", "make it smaller before") from None
    except Exception as error:
        # Damaged files make Pillow's decoders raise errors of many types, as struct.error and IndexError.
        problem = f"{name} cannot be read as an image: {str(error) or type(error).__name__}"[:200]
        raise UnreadableError(problem, "give a complete PNG, JPEG or WebP file") from None


def embedded(request: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """A request's JSON with its images as values that `from_json` reads without touching a file.

    Images, masks, masks of regions and control images are base64 of a file (a data URL too), {"png": base64}, or an
    array as `to_json` writes it. Callers in this process may give bytes of files, and images.

    Raises:
        ParameterError: another form.
        UnreadableError, TooLargeError: see `image_of`.
    """
    made = dict(request)
    for name in ("image", "mask"):
        if made.get(name) is not None:
            made[name] = _images(name, made[name], limits)
    regions = made.get("regions")
    if isinstance(regions, Mapping):
        made["regions"] = {phrase: _region(phrase, region, limits) for phrase, region in regions.items()}
    control = made.get("control")
    if isinstance(control, list):
        made["control"] = [_control(one, limits) for one in control]
    return made


def decoded(name: str, text: str) -> bytes:
    """The bytes of base64, or of a data URL. Raises UnreadableError."""
    if (header := _DATA_URL.match(text)) is not None:
        text = text[header.end() :]
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        remedy = "give the bytes of a PNG, JPEG or WebP file as base64; this service reads no files by name"
        raise UnreadableError(f"{name} is not base64: {text[:40]!r}", remedy) from None


def _images(name: str, value: Any, limits: Limits) -> Any:
    if not isinstance(value, list):
        return _image(name, value, limits)
    if len(value) > limits.images:
        raise ParameterError(f"{name} is a list of {len(value)}", f"this service takes at most {limits.images}")
    return [_image(name, one, limits) for one in value]


def _image(name: str, value: Any, limits: Limits) -> Any:
    if isinstance(value, bytes):
        # A file of a multipart upload.
        return _Png(image_of(name, value, limits))
    if isinstance(value, Image.Image):
        return _Png(value)
    if isinstance(value, str):
        return _Png(image_of(name, decoded(name, value), limits))
    if isinstance(value, Mapping) and value.keys() == {"png"} and isinstance(value["png"], str):
        return _Png(image_of(name, decoded(name, value["png"]), limits))
    if isinstance(value, Mapping) and "shape" in value:
        # An array as `to_json` writes it; its size is that of the body.
        return value
    raise ParameterError(
        f"{name} cannot be read: {value!r}"[:200], "give the bytes of a PNG, JPEG or WebP file as base64"
    )


def _region(phrase: str, value: Any, limits: Limits) -> Any:
    box = isinstance(value, list) and all(isinstance(one, int | float) for one in value)
    return value if box else _image(f"the region of '{phrase}'"[:80], value, limits)


def _control(value: Any, limits: Limits) -> Any:
    if not isinstance(value, Mapping) or value.get("image") is None:
        # Refused where the request is read.
        return value
    return {**value, "image": _images("control", value["image"], limits)}


class _Png(dict[str, str]):
    """An image in the form {"png": base64}, which `from_json` reads."""

    def __init__(self, image: Image.Image) -> None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        super().__init__(png=base64.b64encode(buffer.getvalue()).decode())
