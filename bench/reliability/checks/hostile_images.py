"""Images and masks made to be misread: every pixel that comes out is right, or one line says why there is none."""

import io
import os
import random
import signal
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from ebca.bench.reliability.table import Options
from ebca.errors import ParameterError
from ebca.runtime.images.inputs import load_images, load_masks

SIDE: Final = 16
"""Rows and columns of the pixels. The session has the same size, so nothing is resampled and values can be exact."""
_SECONDS: Final = 10
_LONGEST: Final = 600
"""Characters of an error or a warning: more does not fit the terminal."""

_ALPHA_FORMATS: Final = ("PNG", "TIFF", "WEBP", "TGA")
_ORIENTATION: Final = 0x0112
# What an orientation does to the pixels [H,W,3] as stored, from the EXIF standard's table of rows and columns.
_TURNS: Final[dict[int, Callable[[np.ndarray], np.ndarray]]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p[::-1].transpose(1, 0, 2),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p.transpose(1, 0, 2)[::-1],
}


class _TooLate(BaseException):
    """Not an Exception, which the code under test could take for an error of its own."""


@dataclass(frozen=True)
class Case:
    """One input. `image` and `mask` are what it must be read as, [H,W,3] and [H,W] float; None: it may be refused."""

    name: str
    value: Any
    image: np.ndarray | None = None
    mask: np.ndarray | None = None


def run(options: Options) -> dict[str, Any]:
    """count: inputs, each read as an image and as a mask.

    A failure is an input that was read wrongly, ended in another error than one line, hung, or was refused although its
    pixels are well defined.
    """
    report: dict[str, Any] = {"images_read": 0, "masks_read": 0, "refused": 0, "failures": []}
    for case in cases(options.count, options.seed, options.folder):
        for kind, read, right in (("images", load_images, case.image), ("masks", load_masks, case.mask)):
            found, problem = _outcome(read, case.value)
            if found is not None:
                report[f"{kind}_read"] += 1
                problem = _difference(kind, found, right)
            elif problem is None:
                report["refused"] += 1
                # A mask without a hole is refused, and that is right.
                defined = right is not None and (kind == "images" or bool(right.any()))
                problem = "was refused although it is well defined" if defined else None
            if problem is not None:
                report["failures"].append(f"{case.name} as one of the {kind}: {problem}")
    return report


def cases(count: int, seed: int, folder: Path) -> Iterator[Case]:
    """`count` inputs of all kinds in turn."""
    chance = random.Random(seed)
    kinds = (_plain, _sixteen_bits, _transparent, _turned, _damaged, _lying_header, _array, _strange)
    for index in range(count):
        yield kinds[index % len(kinds)](chance, folder / f"{index:05}")


def _outcome(read: Callable[..., np.ndarray], value: Any) -> tuple[np.ndarray | None, str | None]:
    """(pixels, None), (None, None) for a refusal in one line, or (None, what is wrong)."""
    try:
        with warnings.catch_warnings(record=True) as said, _in_time():
            warnings.simplefilter("always")
            found = read(value, SIDE, SIDE)
    except ParameterError as error:
        return None, _too_long(str(error))
    except _TooLate:
        return None, f"took more than {_SECONDS} s"
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    for warning in said:
        if (problem := _too_long(str(warning.message))) is not None:
            return None, problem
    return found, None


def _difference(kind: str, found: np.ndarray, right: np.ndarray | None) -> str | None:
    shape = (SIDE, SIDE, 3) if kind == "images" else (1, SIDE, SIDE)
    # An array with another axis holds several.
    if found.ndim != 4 or found.shape[1:] != shape or found.dtype != np.float32 or not np.isfinite(found).all():
        return f"gave {found.dtype} {list(found.shape)}"
    if found.min() < 0 or found.max() > 1:
        return f"gave values from {found.min()} to {found.max()}"
    # One unit of the rounding to 8 bits, from which images start.
    if right is not None and (worst := float(np.abs(found.reshape(right.shape) - right).max())) > 1.01 / 255:
        return f"is wrong by up to {worst:.3f}"
    return None


def _too_long(text: str) -> str | None:
    if "\n" in text or len(text) > _LONGEST:
        return f"said {len(text)} characters in {text.count(chr(10)) + 1} lines"
    return None


@contextmanager
def _in_time() -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise _TooLate

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _pixels(chance: random.Random, channels: int) -> np.ndarray:
    shape = (SIDE, SIDE, channels) if channels > 1 else (SIDE, SIDE)
    return np.frombuffer(chance.randbytes(SIDE * SIDE * channels), np.uint8).reshape(shape)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """8-bit grey or RGB as [H,W,3] in [0, 1]."""
    return (pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, -1)) / 255.0


def _white(rgb: np.ndarray) -> np.ndarray:
    """[H,W]: 1 where 8-bit luminance (ITU-R 601) is a half or more, as float."""
    return (np.rint(rgb @ (0.299, 0.587, 0.114) * 255) >= 128).astype(float)


def _settled(rgb: np.ndarray) -> bool:
    """Whether no pixel is so close to the middle that rounding decides."""
    return bool((np.abs(rgb @ (0.299, 0.587, 0.114) * 255 - 127.5) > 1.5).all())


def _mask_of(rgb: np.ndarray) -> np.ndarray | None:
    return _white(rgb) if _settled(rgb) else None


def _stored(chance: random.Random, image: Image.Image, path: Path, form: str, **options: Any) -> Any:
    """The image as a file, or as the object that Pillow makes of it."""
    if form == "WEBP":
        options["lossless"] = True
        options["exact"] = True
    file = path.with_suffix("." + form.lower())
    image.save(file, form, **options)
    if chance.random() < 0.5:
        return chance.choice((file, str(file)))
    return Image.open(io.BytesIO(file.read_bytes()))


def _plain(chance: random.Random, path: Path) -> Case:
    mode = chance.choice(("1", "L", "RGB", "P"))
    form = chance.choice(("PNG", "TIFF", "BMP") if mode != "RGB" else ("PNG", "TIFF", "BMP", "WEBP", "PPM", "TGA"))
    pixels = _pixels(chance, 3 if mode == "RGB" else 1)
    if mode == "1":
        pixels = np.where(pixels >= 128, 255, 0).astype(np.uint8)
        image = Image.fromarray(pixels).convert("1", dither=Image.Dither.NONE)
    elif mode == "P":
        colours = np.frombuffer(chance.randbytes(768), np.uint8).reshape(256, 3)
        image = Image.fromarray(pixels).copy()
        image = Image.frombytes("P", (SIDE, SIDE), pixels.tobytes())
        image.putpalette(colours.tobytes())
        pixels = colours[pixels]
    else:
        image = Image.fromarray(pixels)
    rgb = _rgb(pixels)
    return Case(f"{mode} in {form}", _stored(chance, image, path, form), rgb, _mask_of(rgb))


def _sixteen_bits(chance: random.Random, path: Path) -> Case:
    values = np.frombuffer(chance.randbytes(2 * SIDE * SIDE), "<u2").reshape(SIDE, SIDE)
    rgb = _rgb(values / 257.0)
    if chance.random() < 0.3:
        floats = (values / 65535).astype(np.float32)
        scale = chance.choice((1.0, 1.0, 255.0))
        image = Image.fromarray(floats * np.float32(scale))
        value = _stored(chance, image, path, "TIFF")
        return Case("floats in TIFF", value, rgb if scale == 1 else None, _mask_of(rgb) if scale == 1 else None)
    image = Image.frombytes("I;16", (SIDE, SIDE), values.tobytes())
    form = chance.choice(("PNG", "TIFF"))
    return Case(f"16 bits in {form}", _stored(chance, image, path, form), rgb, _mask_of(rgb))


def _transparent(chance: random.Random, path: Path) -> Case:
    mode, form = chance.choice(("RGBA", "LA")), chance.choice(_ALPHA_FORMATS)
    if form == "WEBP":
        mode = "RGBA"
    pixels = _pixels(chance, 4 if mode == "RGBA" else 2).copy()
    one_colour = chance.random() < 0.5
    if one_colour:
        pixels[..., :-1] = pixels[0, 0, :-1]
    alpha = pixels[..., -1] / 255.0
    colours = _rgb(pixels[..., :3] if mode == "RGBA" else pixels[..., 0])
    white = colours * alpha[..., None] + 1 - alpha[..., None]
    image = Image.frombytes(mode, (SIDE, SIDE), pixels.tobytes())
    # The hole of a mask with one colour is where it is transparent, else where its colours are white.
    hole = (pixels[..., -1] <= 127).astype(float) if one_colour else _mask_of(colours)
    return Case(f"{mode} in {form}", _stored(chance, image, path, form), white, hole)


def _turned(chance: random.Random, path: Path) -> Case:
    orientation, form = chance.randint(1, 8), chance.choice(("PNG", "TIFF", "WEBP"))
    pixels = _pixels(chance, 3)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    rgb = _rgb(_TURNS[orientation](pixels))
    return Case(
        f"orientation {orientation} in {form}", _stored(chance, image, path, form, exif=exif), rgb, _mask_of(rgb)
    )


def _damaged(chance: random.Random, path: Path) -> Case:
    form = chance.choice(("PNG", "TIFF", "BMP", "WEBP", "JPEG", "GIF", "PPM", "TGA"))
    stream = io.BytesIO()
    Image.fromarray(_pixels(chance, 3)).save(stream, form)
    data = bytearray(stream.getvalue())
    way = chance.choice(("bits", "cut", "header", "middle", "twice"))
    if way == "bits":
        for _ in range(chance.randint(1, 20)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif way == "cut":
        del data[chance.randrange(len(data)) :]
    elif way == "header":
        for at in range(min(len(data), 64)):
            if chance.random() < 0.2:
                data[at] = chance.randrange(256)
    elif way == "middle":
        at = chance.randrange(len(data))
        data[at:at] = chance.randbytes(chance.randint(1, 64))
    else:
        data += bytes(data)
    file = path.with_suffix("." + form.lower())
    file.write_bytes(data)
    # Formats without checksums may give any pixels: Pillow's are then right by definition.
    return Case(f"{form} with damage ({way})", file)


def _lying_header(chance: random.Random, path: Path) -> Case:
    """A header that announces more pixels than there are, or than memory holds."""
    stream = io.BytesIO()
    form = chance.choice(("PNG", "BMP", "GIF"))
    Image.fromarray(_pixels(chance, 3)).save(stream, form)
    data = bytearray(stream.getvalue())
    sides = [chance.choice((0, 1, 17, 30_000, 65_535, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
    at, size, order = {"PNG": (16, 4, "big"), "BMP": (18, 4, "little"), "GIF": (6, 2, "little")}[form]
    for index, side in enumerate(sides):
        data[at + index * size : at + (index + 1) * size] = (side % 256**size).to_bytes(size, order)
    if form == "PNG":
        # With the right checksum, so that the sizes are believed.

        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    file = path.with_suffix("." + form.lower())
    file.write_bytes(data)
    return Case(f"{form} that announces {sides[0]} x {sides[1]}", file)


def _array(chance: random.Random, path: Path) -> Case:
    del path
    kind = chance.choice(("uint8", "bool", "f2", "f4", "f8", "strided", "swapped", "not finite", "outside", "integers",
                          "objects", "texts", "complex", "shape"))  # fmt: skip
    pixels = _pixels(chance, 3)
    rgb = _rgb(pixels)
    exact: np.ndarray | None = rgb
    value: Any = pixels
    if kind == "bool":
        value = pixels >= 128
        exact = value.astype(float)
    elif kind in ("f2", "f4", "f8"):
        value = rgb.astype(kind)
    elif kind == "strided":
        value = np.repeat(pixels, 2, 1)[::-1, ::2][::-1]
    elif kind == "swapped":
        value = rgb.astype(">f4")
    elif kind == "not finite":
        value, exact = rgb.astype(np.float32), None
        value[chance.randrange(SIDE), 0, 0] = chance.choice((np.nan, np.inf, -np.inf))
    elif kind == "outside":
        value, exact = rgb * chance.choice((255.0, -1.0, 1e30)), None
    elif kind == "integers":
        value, exact = pixels.astype(chance.choice(("i1", "u2", "i4", "u8"))), None
    elif kind == "objects":
        value, exact = pixels.astype(object), None
    elif kind == "texts":
        value, exact = pixels.astype("U3"), None
    elif kind == "complex":
        value, exact = rgb.astype(np.complex64), None
    elif kind == "shape":
        shape = tuple(chance.choice((0, 1, 2, 3, 5, 16)) for _ in range(chance.randint(0, 5)))
        value, exact = np.zeros(shape, chance.choice((np.uint8, np.float32))), None
    return Case(f"array, {kind}", value, exact, None if exact is None else _mask_of(exact))


def _strange(chance: random.Random, path: Path) -> Case:
    """What is not an image at all."""
    kind = chance.choice(("empty", "text", "zip", "folder", "absent", "loop", "zero", "name", "null", "closed", "bytes",
                          "number", "none", "dict", "nested", "svg", "fifo"))  # fmt: skip
    value: Any = path.with_suffix(".png")
    if kind in ("empty", "text", "zip", "svg"):
        content = {"empty": b"", "text": b"P6 hello", "zip": b"PK\3\4" + bytes(100), "svg": b"<svg/>"}[kind]
        value.write_bytes(content)
    elif kind == "folder":
        value.mkdir()
    elif kind == "loop":
        value.symlink_to(value.name)
    elif kind == "zero":
        value = Path("/dev/zero")
    elif kind == "name":
        value = "a" * 5000 + "\n\udcff.png"
    elif kind == "null":
        value = "image\0.png"
    elif kind == "closed":
        value = Image.new("RGB", (SIDE, SIDE))
        value.close()
    elif kind == "bytes":
        value = bytes(10)
    elif kind == "number":
        value = chance.choice((0, -1, 1.5, float("nan"), True))
    elif kind == "none":
        value = None
    elif kind == "dict":
        value = {"image": 1}
    elif kind == "nested":
        value = [[[1, 2, 3]]]
    elif kind == "fifo":
        os.mkfifo(value)
    return Case(f"not an image: {kind}", value)
