"""The JSON form of a request, for services and for the parameters in image files."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ebca.errors import ParameterError
from ebca.runtime.conditioning import schedules
from ebca.runtime.conditioning.controlnets import Control, ControlNets
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.conditioning.sizes import SizeConditions
from ebca.runtime.images.files import read_parameters
from ebca.runtime.images.pixels import opened
from ebca.runtime.images.regions import is_box
from ebca.runtime.request import inputs
from ebca.runtime.request.fields import FIELD_PARTS, GenerateRequest
from ebca.runtime.request.validate import Task
from ebca.runtime.sampling.repaint import RePaint

_EMBEDDED = ("image", "mask", "regions", *inputs.ARRAYS)
_GAMMAS = ("gamma_attn", "gamma_norm")
_STRENGTHS = ("subject_exclusion", "subject_balance")
_EDIT_FIELDS = ("prompt", "direction", "alpha", "gamma_attn", "gamma_norm", "prompt_embeds")
_CONTROL_FIELDS = ("image", "scale", "start", "end", "name")
_DTYPES = ("float32", "float64", "uint8", "bool")


def to_json(request: GenerateRequest, *, embedded: bool = True) -> dict[str, Any]:
    """The flat fields of a request as JSON values. Fields that are None are omitted.

    Args:
        request: the request.
        embedded: include images, embeddings and latents as base64 (files stay paths), and regions; else omit these
            fields, and what has no effect without subjects.
    """
    data: dict[str, Any] = {}
    for name, value in request.values().items():
        if value is None or (name in _EMBEDDED and not embedded):
            continue
        data[name] = _WRITERS.get(name, _plain)(value)
    if not embedded:
        for edit in data["edits"]:
            edit.pop("prompt_embeds", None)
        for control in data["control"]:
            del control["image"]
        if not data["control"]:
            del data["control"]
        if request.subject.subjects is None and not request.subject.regions:
            for name in (*_STRENGTHS, "subject_window"):
                del data[name]
    return data


def from_json(data: Mapping[str, Any]) -> GenerateRequest:
    """Read a request from the form that `to_json` writes. Missing or null fields get their defaults.

    Raises:
        ParameterError: a field that does not exist, or a value that its field does not accept.
    """
    if not isinstance(data, Mapping):
        raise ParameterError(f"the request is of type {type(data).__name__}", "give a JSON object")
    values = {}
    for name, value in data.items():
        if value is not None:
            values[name] = _READERS[name](name, value) if name in _READERS else value
    return GenerateRequest.of(**values)


def from_parameters(parameters: Mapping[str, Any], **changes: Any) -> GenerateRequest:
    """Read the request from `Result.parameters`, or from what `ebca.read_parameters` finds in an image file.

    Files of images and masks are read again, and must be those that were used. Entries that describe the result (task,
    size, model, backend) are ignored.

    Args:
        parameters: of the result.
        changes: fields to replace. What was given as arrays is not recorded and must be given again.

    Raises:
        ParameterError: a field that does not exist, or an input that is not recorded, is missing, or has changed.
    """
    recorded = {name: value for name, value in parameters.items() if name in FIELD_PARTS and name not in changes}
    for name in ("prompt_weighting", "long_prompts"):
        # Images of versions without them were made without them.
        if name not in changes:
            recorded.setdefault(name, False)
    if parameters.get("task") == Task.REPAINT.value:
        # It has steps of its own, and the recorded name is theirs.
        recorded.pop("scheduler", None)
    for name, files in dict(parameters.get("inputs") or {}).items():
        if name == "control" and name not in changes:
            recorded[name] = inputs.same_controls(recorded.get(name), files)
        elif name not in changes:
            changes[name] = inputs.same_regions(files) if name == "regions" else inputs.same_files(name, files)
    return GenerateRequest.of(**from_json(recorded).values() | changes)


def read_request(path: str | Path, **changes: Any) -> GenerateRequest:
    """The request that made an image file; see `from_parameters` for changes and errors.

    The size, and the number of images, belong to the session: `ebca.read_parameters` has them as "height", "width" and
    "num_images". `Engine.repeat` takes everything from the file.
    """
    return from_parameters(read_parameters(path), **changes)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        return value
    return [_plain(one) for one in value]


def _write_token_weights(value: Mapping[str | int, float]) -> list[list[Any]]:
    # Pairs: as the keys of a JSON object, positions would become words.
    return [[key if isinstance(key, str) else int(key), float(factor)] for key, factor in value.items()]


def _write_edits(value: Sequence[Edit]) -> list[dict[str, Any]]:
    made = []
    for edit in value:
        gammas = {name: schedules.to_json(getattr(edit, name)) for name in ("alpha", *_GAMMAS)}
        prompt = {} if edit.prompt is None else {"prompt": _plain(edit.prompt)}
        embeds = {} if edit.prompt_embeds is None else {"prompt_embeds": _write_array(edit.prompt_embeds)}
        made.append({**prompt, "direction": int(edit.direction), **gammas, **embeds})
    return made


def _write_control(value: Control | Sequence[Control]) -> list[dict[str, Any]]:
    return [
        {
            "image": _write_images("control", one.image),
            **{name: float(getattr(one, name)) for name in ("scale", "start", "end")},
            **({} if one.name is None else {"name": one.name}),
        }
        for one in ControlNets(value).each
    ]


def _write_images(name: str, value: Any) -> Any:
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, np.ndarray):
        return _write_array(value)
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        # PNG has neither all modes nor, as Pillow writes it, the orientation.
        opened(name, value).save(buffer, "PNG")
        return {"png": base64.b64encode(buffer.getvalue()).decode()}
    return [_write_images(name, one) for one in value]


def _write_regions(value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        phrase: [float(one) for one in region] if is_box(region) else _write_images("regions", region)
        for phrase, region in value.items()
    }


def _write_array(value: Any) -> dict[str, Any]:
    array = np.asarray(value)
    if array.dtype.name not in _DTYPES:
        array = array.astype(np.float32)
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def _read_token_weights(name: str, value: Any) -> dict[str | int, float]:
    if isinstance(value, Mapping):
        return dict(value)
    try:
        return dict(value)
    except (TypeError, ValueError):
        raise _wrong(name, value, "pairs [word or position, factor]") from None


def _read_size(name: str, value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read_edits(name: str, value: Any) -> tuple[Edit, ...]:
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise _wrong(name, value, "a list of objects")
    edits = []
    for index, one in enumerate(value):
        if unknown := sorted(one.keys() - set(_EDIT_FIELDS)):
            raise ParameterError(f"an edit has no field '{unknown[0]}'", f"the fields are {', '.join(_EDIT_FIELDS)}")
        given = {key: entry for key, entry in one.items() if entry is not None}
        for key in ("alpha", *_GAMMAS):
            if key in given:
                given[key] = schedules.from_json(given[key], f"{key} of editing prompt {index + 1}")
        if "prompt_embeds" in given:
            given["prompt_embeds"] = _read_array("prompt_embeds", given["prompt_embeds"])
        edits.append(Edit(**given))
    return tuple(edits)


def _read_control(name: str, value: Any) -> tuple[Control, ...]:
    if not isinstance(value, list) or not all(isinstance(one, Mapping) and "image" in one for one in value):
        raise _wrong(name, value, "a list of objects, each with an image")
    controls = []
    for one in value:
        if unknown := sorted(one.keys() - set(_CONTROL_FIELDS)):
            raise ParameterError(
                f"a control has no field '{unknown[0]}'", f"the fields are {', '.join(_CONTROL_FIELDS)}"
            )
        given = {key: entry for key, entry in one.items() if entry is not None}
        controls.append(Control(**{**given, "image": _read_images(name, one["image"])}))
    return tuple(controls)


def _read_repaint(name: str, value: Any) -> RePaint:
    try:
        return RePaint(**value)
    except TypeError:
        raise _wrong(name, value, f"an object with {', '.join(RePaint.__dataclass_fields__)}") from None


def _read_images(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return [_read_images(name, one) for one in value]
    if isinstance(value, Mapping) and value.keys() == {"png"}:
        try:
            image = Image.open(io.BytesIO(base64.b64decode(value["png"], validate=True)))
            image.load()
        except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
            problem = f"{name} cannot be read as a PNG: {error}"
            raise ParameterError(problem, "give the bytes of a PNG file as base64") from None
        return image
    return _read_array(name, value)


def _read_regions(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "an object of phrases and their masks or boxes")
    return {phrase: _read_region(name, region) for phrase, region in value.items()}


def _read_region(name: str, value: Any) -> Any:
    if not isinstance(value, list):
        return _read_images(name, value)
    # A mask is a list of rows, and a box a list of numbers.
    is_mask = bool(value) and isinstance(value[0], list)
    return _read_array(name, value) if is_mask else tuple(value)


def _read_array(name: str, value: Any) -> np.ndarray:
    """An array, from an object as `to_json` writes it or from nested lists of numbers."""
    if isinstance(value, list):
        return np.asarray(value, np.float32)
    try:
        dtype = value["dtype"]
        if dtype not in _DTYPES:
            raise ValueError(f"dtype {dtype!r}")
        raw = base64.b64decode(value["data"], validate=True)
        return np.frombuffer(raw, dtype).reshape([int(side) for side in value["shape"]])
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(name, error, 'an object {"dtype", "shape", "data"} with data in base64') from None


def _wrong(name: str, value: Any, expected: str) -> ParameterError:
    return ParameterError(f"{name} cannot be read: {value!r}"[:200], f"give {expected}")


_WRITERS: Mapping[str, Callable[[Any], Any]] = {
    "token_weights": _write_token_weights,
    "edits": _write_edits,
    "control": _write_control,
    "repaint": lambda value: dict(vars(value)),
    **dict.fromkeys((*_GAMMAS, *_STRENGTHS), schedules.to_json),
    "regions": _write_regions,
    "image": partial(_write_images, "image"),
    "mask": partial(_write_images, "mask"),
    **dict.fromkeys(inputs.ARRAYS, _write_array),
}

_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "token_weights": _read_token_weights,
    "edits": _read_edits,
    "control": _read_control,
    "repaint": _read_repaint,
    **dict.fromkeys((*_GAMMAS, *_STRENGTHS), lambda name, value: schedules.from_json(value, name)),
    "regions": _read_regions,
    **dict.fromkeys(("image", "mask"), _read_images),
    **dict.fromkeys(inputs.ARRAYS, _read_array),
    **{one.name: _read_size for one in fields(SizeConditions)},
}
