"""Image files that carry the parameters of their images: PNG, JPEG and WebP."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from ebca.errors import ParameterError
from ebca.result_files import check_writable, reason_of, replacing
from ebca.runtime.validation import warn, whole

KEY = "ebca"
"""The name of the parameters: of the text chunk in a PNG file, of the JSON object in the EXIF data of the others."""

FORMATS: Mapping[str, str] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""The suffixes of image files, and Pillow's names of their formats."""

JPEG_QUALITY = 95
"""The default. WebP and PNG files are lossless by default."""

_NAMES = "a .png, .jpg or .webp file"
# Of EXIF's UserComment: the name of its encoding comes before the text.
_ASCII = b"ASCII\0\0\0"
# A segment of a JPEG file has a length of two bytes, which counts them too.
_MOST_EXIF = 65535 - 2


def save_image(
    image: Image.Image, path: str | Path, parameters: Mapping[str, Any], *, quality: int | None = None
) -> Path:
    """Write an image and its parameters to one file, whose suffix chooses the format.

    The file appears complete or not at all, and replaces one of the same name. Folders that are missing are created,
    and a "~" at the beginning is the user's home.

    Args:
        image: the image.
        path: a .png, .jpg, .jpeg or .webp file.
        parameters: JSON values. In a PNG file they are the text "ebca", in the others the object "ebca" of the JSON in
            EXIF's UserComment. A JPEG file has room for 64 KB; of more, none are written, with a warning.
        quality: 1 to 100. None: 95 for JPEG, lossless for WebP. PNG is always lossless and takes none.

    Returns:
        The path, with the user's home in place of "~".

    Raises:
        ParameterError: another suffix, a wrong quality, or a file that cannot be written.
    """
    path = expanded(path)
    options = _options(path, parameters, quality)
    with replacing(path) as file:
        image.save(file, FORMATS[path.suffix.lower()], **options)
    return path


def png_bytes(image: Image.Image, parameters: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of the PNG file that `save_image` writes; without parameters quickly, as for a preview."""
    buffer = io.BytesIO()
    options = {"compress_level": 1} if parameters is None else _options(Path("image.png"), parameters, None)
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def save_preview(image: Image.Image, path: Path) -> None:
    """Replace an image file, without parameters: readers find the old one or the new one.

    Raises:
        ParameterError: another suffix, or a file that cannot be written.
    """
    check_suffix(path, "the image file")
    kind = FORMATS[path.suffix.lower()]
    with replacing(path) as file:
        # Written at every evaluation, and read once.
        image.save(file, kind, **({"compress_level": 1} if kind == "PNG" else {}))


def read_parameters(path: str | Path) -> dict[str, Any]:
    """Read the parameters that are stored in an image file, see `save_image`.

    Raises:
        ParameterError: not an image file that ebca wrote.
    """
    path = expanded(path)
    try:
        with Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
            found = _stored(image)
    except FileNotFoundError:
        raise ParameterError(f"the image file '{path}' does not exist", "check the path") from None
    except IsADirectoryError:
        raise ParameterError(f"'{path}' is a folder", f"name {_NAMES}") from None
    except UnidentifiedImageError:
        raise ParameterError(f"'{path}' is not a PNG, JPEG or WebP image", "name a file that ebca wrote") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"'{path}' cannot be read as a PNG, JPEG or WebP image: {reason_of(error)}"
        raise ParameterError(problem, "name a file that ebca wrote") from None
    if found is None:
        raise ParameterError(
            f"'{path}' holds no parameters of ebca: another program wrote or changed it", "name a file that ebca wrote"
        )
    return found


def numbered(path: Path, count: int) -> list[Path]:
    """One path per image: the path itself for one image, else with -0, -1, ... before the suffix.

    Raises:
        ParameterError: a path without a file name.
    """
    if not path.name:
        raise ParameterError(f"the file '{path}' is a folder", "name a file")
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{index}") for index in range(count)]


def check_image_path(path: str | Path, what: str = "the image file") -> None:
    """Raise ParameterError unless `save_image` can write this file; `what` names it. Nothing is left behind."""
    path = expanded(path)
    # A folder is called one before its name is.
    check_writable(path, what)
    check_suffix(path, what)


def expanded(path: str | Path) -> Path:
    """A path with the user's home in place of a "~" at the beginning.

    Raises:
        ParameterError: not a path, or the home of a user who does not exist.
    """
    try:
        path = Path(path)
        # A file may be called "~x.png".
        return path.expanduser() if len(path.parts) > 1 else path
    except TypeError:
        raise ParameterError(f"a path is of type {type(path).__name__}", "give a string or a pathlib.Path") from None
    except RuntimeError:
        raise ParameterError(f"'{path}' is in the home of a user who does not exist", "check the path") from None


def _options(path: Path, parameters: Mapping[str, Any], quality: int | None) -> dict[str, Any]:
    """Pillow's options for saving a file with these parameters."""
    check_suffix(path, "the image file")
    kind = FORMATS[path.suffix.lower()]
    if quality is not None:
        quality = whole("quality", quality)
        if kind == "PNG":
            raise ParameterError(f"quality is {quality} for '{path}'", "leave it out: PNG files are lossless")
        if not 1 <= quality <= 100:
            raise ParameterError(f"quality is {quality}", "give 1 to 100")
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt(KEY, _readable(parameters))
        return {"pnginfo": text}
    exif = _exif(parameters)
    if kind == "WEBP":
        return {"exif": exif, "lossless": True} if quality is None else {"exif": exif, "quality": quality}
    if len(exif) > _MOST_EXIF:
        warn(f"'{path}' holds no parameters: these have {len(exif)} bytes and a JPEG file has room for {_MOST_EXIF}")
        exif = b""
    # Colours at the full resolution: at half of it, edges between colours bleed even at a quality of 100.
    return {"exif": exif, "quality": JPEG_QUALITY if quality is None else quality, "subsampling": 0}


def check_suffix(path: Path, what: str) -> None:
    """Raise ParameterError unless the suffix is that of an image file; `what` names the file."""
    if path.suffix.lower() not in FORMATS:
        ending = f"the suffix '{path.suffix}'" if path.suffix else "no suffix"
        raise ParameterError(f"{what} '{path}' has {ending}", f"name {_NAMES}")
    Image.init()
    if FORMATS[path.suffix.lower()] not in Image.SAVE:
        raise ParameterError(f"{what} is '{path}', and this Pillow cannot write WebP", "name a .png or .jpg file")


def _readable(parameters: Mapping[str, Any]) -> str:
    """JSON without escapes, unless a file name holds what is not valid Unicode."""
    text = json.dumps(parameters, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(parameters)
    return text


def _exif(parameters: Mapping[str, Any]) -> bytes:
    """EXIF data whose UserComment is the JSON {"ebca": parameters}, in ASCII, which every program reads alike."""
    exif = Image.Exif()
    comment = json.dumps({KEY: parameters})
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + comment.encode("ascii")
    return exif.tobytes()


def _stored(image: Image.Image) -> dict[str, Any] | None:
    """The parameters in an opened file; None if there are none."""
    try:
        if image.format == "PNG":
            found = json.loads(image.text[KEY])  # type: ignore[attr-defined]
        else:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
            found = json.loads(bytes(comment).removeprefix(_ASCII).decode("ascii"))[KEY]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
