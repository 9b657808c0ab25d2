"""The cases: a folder of images, what they show, and what they should show."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ebca.bench.edit.recipes import DEFAULT_RECIPE, RECIPES, Recipe, bare, prompts
from ebca.engines.contract.files import sha256
from ebca.errors import ParameterError
from ebca.result_files import reason_of
from ebca.runtime.images.files import FORMATS
from ebca.runtime.images.pixels import hole, on_white, opened

_NEEDED = ("name", "images", "source", "target")
_OPTIONAL = ("masks", "recipe", "add", "remove", "object")


@dataclass(frozen=True)
class Case:
    """One edit of many images.

    name: of the case and of its folder of results.
    images: the files, in order of their names.
    source, target: what the images show, and what they should show.
    masks: one file per image, white in the object; None: there are none.
    recipe: settings of the editing prompts.
    add, remove: the editing prompts. None is taken away if `remove` is None.
    object: what a segmenter looks for if there are no masks.
    segmenter: the name of the one that made the masks; None: they were given, or there are none.
    """

    name: str
    images: tuple[Path, ...]
    source: str
    target: str
    masks: tuple[Path, ...] | None = None
    recipe: Recipe = field(default=RECIPES[DEFAULT_RECIPE])
    add: str = ""
    remove: str | None = None
    object: str = ""
    segmenter: str | None = None


def read_cases(file: Path) -> list[dict[str, Any]]:
    """The entries of a JSON file with a list of cases; folders are relative to the file.

    Raises:
        ParameterError: it cannot be read, or an entry lacks something or has something unknown.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterError(f"cannot read the cases '{file}': {reason_of(error)}", "name a JSON file") from None
    if not isinstance(found, list) or not found:
        raise ParameterError(f"'{file}' is no list of cases", f"write a list of objects with {', '.join(_NEEDED)}")
    for number, entry in enumerate(found, 1):
        _check_entry(f"case {number} of '{file}'", entry)
        for name in ("images", "masks"):
            if name in entry:
                entry[name] = file.parent / Path(entry[name]).expanduser()
    names = [entry["name"] for entry in found]
    if len(set(names)) < len(names):
        raise ParameterError(f"two cases of '{file}' have the same name", "give each its own")
    return found


def _check_entry(what: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise ParameterError(f"{what} is no object", f"give {', '.join(_NEEDED)}")
    for name in _NEEDED:
        if name not in entry:
            raise ParameterError(f"{what} has no '{name}'", f"give {', '.join(_NEEDED)}")
    for name, value in entry.items():
        if name not in (*_NEEDED, *_OPTIONAL):
            raise ParameterError(f"{what} has '{name}'", f"choose from {', '.join((*_NEEDED, *_OPTIONAL))}")
        if not (isinstance(value, str) and value.strip()) and not (name == "remove" and value is None):
            raise ParameterError(f"'{name}' of {what} is {value!r}", "give a text")


def make_case(entry: Mapping[str, Any], recipe: str | None = None, count: int | None = None) -> Case:
    """The case of an entry as `read_cases` returns it.

    Args:
        entry: its texts and folders.
        recipe: a name of RECIPES for a case that names none.
        count: how many images to take; None: all.

    Raises:
        ParameterError: a folder has no images, an image has no mask, or the name or the recipe is wrong.
    """
    name, chosen = entry["name"], entry.get("recipe") or recipe or DEFAULT_RECIPE
    if name != Path(name).name or name.startswith("."):
        raise ParameterError(f"the case '{name}' cannot be the name of a folder", "leave out slashes and leading dots")
    if chosen not in RECIPES:
        raise ParameterError(f"there is no recipe '{chosen}'", f"choose from {', '.join(RECIPES)}")
    images = _files(Path(entry["images"]), "images")[:count]
    if len({image.stem for image in images}) < len(images):
        raise ParameterError(
            f"two images in '{entry['images']}' differ only in their suffix", "give each a name of its own"
        )
    masks = _masks(images, Path(entry["masks"])) if entry.get("masks") else None
    add, remove = prompts(entry["source"], entry["target"])
    return Case(
        name=name,
        images=images,
        source=entry["source"],
        target=entry["target"],
        masks=masks,
        recipe=RECIPES[chosen],
        add=entry.get("add", add),
        remove=entry.get("remove", remove),
        object=entry.get("object") or bare(entry["source"]),
    )


def _files(folder: Path, what: str) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise ParameterError(f"there is no folder '{folder}' with {what}", "check the path")
    found = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS))
    if not found:
        raise ParameterError(f"there are no {what} in '{folder}'", f"give files that end in {', '.join(FORMATS)}")
    return found


def _masks(images: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    by_name = {mask.stem: mask for mask in _files(folder, "masks")}
    for image in images:
        if image.stem not in by_name:
            raise ParameterError(f"'{image.name}' has no mask in '{folder}'", "give every image one of the same name")
    return tuple(by_name[image.stem] for image in images)


def load_image(file: Path, size: tuple[int, int]) -> Image.Image:
    """An image in RGB, scaled to cover `size` (width, height), and its middle cut out.

    Raises:
        ParameterError: it cannot be read.
    """
    return ImageOps.fit(on_white(f"image '{file}'", opened("image", file)), size, Image.Resampling.LANCZOS)


def load_object(file: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask as bool [H,W], True in the object; scaled and cut like its image.

    Raises:
        ParameterError: it cannot be read, or the whole image is the object, so there is no background.
    """
    mask = ImageOps.fit(hole(f"mask '{file}'", opened("mask", file)).convert("L"), size, Image.Resampling.NEAREST)
    inside = np.asarray(mask) >= 128
    if inside.all():
        raise ParameterError(f"the mask '{file}' leaves no background", "make it black outside the object")
    return inside


def check_files(case: Case) -> None:
    """Read every image and mask of a case now, rather than after hours of edits.

    Raises:
        ParameterError: one cannot be read; a mask has another size than its image, so that they may not be cut alike,
            or leaves no background.
    """
    for number, file in enumerate(case.images):
        size = opened("image", file).size
        if case.masks is not None:
            mask = case.masks[number]
            found = opened("mask", mask).size
            if found != size:
                raise ParameterError(
                    f"the mask '{mask}' has {found[0]} x {found[1]} pixels and its image {size[0]} x {size[1]}",
                    "give them the same size",
                )
            load_object(mask, size)


def digest(file: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        ParameterError: it cannot be read.
    """
    try:
        return sha256(file)
    except OSError as error:
        raise ParameterError(f"'{file}' cannot be read: {reason_of(error)}", "check the file") from None
