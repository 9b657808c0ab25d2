"""What a request was given beside plain values: recorded with a result, and found again to repeat it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ebca.engines.contract.directory import sha256
from ebca.errors import ParameterError
from ebca.runtime.conditioning.controlnets import Control
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.images.files import expanded
from ebca.runtime.images.inputs import image_count
from ebca.runtime.images.regions import is_box, is_file
from ebca.runtime.request.fields import GenerateRequest
from ebca.runtime.request.validate import check_types
from ebca.runtime.validation import at_least_one

IMAGES = ("image", "mask")
_TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
ARRAYS = ("prompt_embeds", "negative_prompt_embeds", *POOLED, "latents")


def recorded(request: GenerateRequest) -> dict[str, Any]:
    """The fields that a JSON of the request without embedded data lacks: of images and masks the files, each with its
    SHA-256; an empty list for what was given as arrays or as PIL images; of regions an object of phrases and their
    files or boxes; of ControlNets a list with the files of each.

    Raises:
        ParameterError: a file that cannot be read.
    """
    given = {name: value for name, value in request.values().items() if value is not None}
    found: dict[str, Any] = {name: files(name, given[name]) for name in IMAGES if name in given}
    if given.get("regions"):
        found["regions"] = {phrase: _recorded_region(region) for phrase, region in given["regions"].items()}
    if controls := request.controlnets.each:
        found["control"] = [files("control", one.image) for one in controls]
    found |= {name: [] for name in ARRAYS if name in given}
    if any(edit.prompt_embeds is not None for edit in request.guidance.edits):
        found["edits"] = []
    return found


def files(name: str, value: Any) -> list[dict[str, str]]:
    """The files of an image, or of several, each with its SHA-256; none if one of them is not a file."""
    return [{"file": str(one), "sha256": _digest(name, one)} for one in _paths(value)]


def same_files(name: str, found: Any) -> str | list[str]:
    """The files of a field that `recorded` has found.

    Raises:
        ParameterError: the field was not given as files, or a file is missing or has changed.
    """
    if not found:
        raise ParameterError(f"'{name}' was given as an array or an object, which is not recorded", "give it again")
    entries = found if isinstance(found, list) else [found]
    if not all(isinstance(one, Mapping) and {"file", "sha256"} <= one.keys() for one in entries):
        raise ParameterError(f"the recorded files of '{name}' cannot be read: {found!r}"[:200], f"give `{name}` again")
    for one in entries:
        if _digest(name, one["file"]) != one["sha256"]:
            raise ParameterError(
                f"{name} '{one['file']}' is not the file that was used: its contents have changed",
                f"restore it, or give `{name}` to use another one",
            )
    paths = [str(one["file"]) for one in entries]
    return paths[0] if len(paths) == 1 else paths


def same_regions(found: Any) -> dict[str, Any]:
    """The regions that `recorded` has found. Raises ParameterError as `same_files` does."""
    if not isinstance(found, Mapping):
        raise ParameterError(f"the recorded regions cannot be read: {found!r}"[:200], "give `regions` again")
    return {
        phrase: tuple(region) if region and is_box(region) else same_files("regions", region)
        for phrase, region in found.items()
    }


def size_giver(request: GenerateRequest) -> Any:
    """The image, or the images, whose aspect ratio the generated ones have if no size is asked for; None: none."""
    controls = request.controlnets.each
    if request.image_inputs.image is not None or not controls:
        return request.image_inputs.image
    return controls[0].image


def same_controls(recorded: Any, found: Any) -> list[dict[str, Any]]:
    """The recorded entries of `control`, with the images that `recorded` has found beside them.

    Raises:
        ParameterError: as `same_files` does.
    """
    if not isinstance(recorded, list) or not isinstance(found, list) or len(recorded) != len(found):
        raise ParameterError("the recorded control images cannot be read", "give `control` again")
    return [{**entry, "image": same_files("control", files)} for entry, files in zip(recorded, found, strict=True)]


def control_files(request: GenerateRequest) -> list[Path]:
    """The files of the images that ControlNets read."""
    return [Path(one) for control in request.controlnets.each for one in _paths(control.image)]


def region_files(request: GenerateRequest) -> list[Path]:
    """The files of masks that the regions of subjects are read from."""
    regions = request.subject.regions
    return [Path(one) for one in regions.values() if is_file(one)] if isinstance(regions, Mapping) else []


def implied_count(request: GenerateRequest) -> int:
    """The number of images that the lists and arrays of a request are for; 1 if it has none.

    Raises:
        ParameterError: something else than a request.
    """
    check_types(request)
    values, given = request.values(), request.guidance.edits
    # `validate` refuses what is no list of edits, and lists that do not fit together.
    edits = [edit for edit in given if isinstance(edit, Edit)] if isinstance(given, list | tuple) else []
    texts = [*(values[name] for name in _TEXTS), *(edit.prompt for edit in edits)]
    arrays = [*(values[name] for name in ARRAYS if name not in POOLED), *(edit.prompt_embeds for edit in edits)]
    lists = [each for each in (*texts, values["seed"]) if isinstance(each, Sequence | np.ndarray)]
    subjects = values["subjects"]
    if isinstance(subjects, list | tuple) and all(isinstance(one, list | tuple) for one in subjects):
        lists += [subjects] if subjects else []
    counts = [len(each) for each in lists if not isinstance(each, str) and (isinstance(each, Sequence) or each.ndim)]
    counts += [len(array) for array in arrays if len(getattr(array, "shape", ())) > 2]
    counts += [len(values[name]) for name in POOLED if len(getattr(values[name], "shape", ())) == 2]
    images = [(name, values[name]) for name in IMAGES]
    if isinstance(values["control"], Control | list | tuple):
        images += [("control", one.image) for one in request.controlnets.each if isinstance(one, Control)]
    counts += [image_count(name, each) for name, each in images if isinstance(each, Sequence | np.ndarray)]
    return max(counts, default=1)


def chosen_count(request: GenerateRequest, num_images: int | None) -> int:
    """The number of images: as asked, else as the lists of the request imply.

    Raises:
        ParameterError: a list of another length, or something else than a request.
    """
    implied = implied_count(request)
    if num_images is None:
        return implied
    count = at_least_one("num_images", num_images)
    if implied not in (1, count):
        raise ParameterError(
            f"num_images is {count}, and the request has lists for {implied} images",
            f"give one prompt, seed or image for all, or {count}: num_images counts all images together",
        )
    return count


def _paths(value: Any) -> list[str | Path]:
    """The paths of an image, or of several; none if one of them is not a file."""
    listed = [value] if isinstance(value, str | Path) else value
    named = isinstance(listed, list | tuple) and all(isinstance(one, str | Path) for one in listed)
    return list(listed) if named else []


def _recorded_region(region: Any) -> Any:
    if is_box(region):
        return [float(one) for one in region]
    found = files("regions", region)
    return found[0] if found else []


def _digest(name: str, path: str | Path) -> str:
    try:
        return sha256(expanded(path))
    except OSError as error:
        problem = f"{name} '{path}' cannot be read: {error.strerror or error}"
        raise ParameterError(problem, f"give `{name}` again") from None
