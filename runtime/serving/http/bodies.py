"""Bodies that are read by hand: JSON, and multipart with files."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Never

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from ebca.runtime.serving.errors import UnreadableError, UnsupportedMediaError
from ebca.runtime.serving.limits import Limits

_FIELDS, _FILES = 200, 64


def kind_of(request: Request) -> str:
    """The type of a body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        UnsupportedMediaError: the body is of another type.
        UnreadableError: it is no JSON object.
    """
    if kind_of(request) != "application/json":
        raise UnsupportedMediaError(
            f"the body is of type '{kind_of(request)[:60]}'", "send application/json or multipart/form-data"
        )
    return await run_in_threadpool(json_object, await request.body())


def json_object(body: bytes | str) -> dict[str, Any]:
    """A JSON object. Raises UnreadableError for anything else, NaN included."""
    try:
        found = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"the body is not JSON: {error}"[:200], "send a JSON object") from None
    if not isinstance(found, dict):
        raise UnreadableError(f"the body is a JSON value of type {type(found).__name__}", "send a JSON object")
    return found


@asynccontextmanager
async def opened_form(request: Request, limits: Limits) -> AsyncIterator[FormData]:
    """The fields and files of a multipart body; files are on disk beyond a megabyte.

    Raises:
        UnsupportedMediaError: the body is of another type.
        HTTPException: it is broken, or has too many parts.
    """
    if kind_of(request) != "multipart/form-data":
        raise UnsupportedMediaError(f"the body is of type '{kind_of(request)[:60]}'", "send multipart/form-data")
    async with request.form(max_fields=_FIELDS, max_files=_FILES, max_part_size=limits.upload_bytes) as form:
        yield form


async def files_in(form: FormData, name: str, most: int) -> list[bytes]:
    """The files of this name in a form; "image[]" counts as "image".

    Raises:
        UnreadableError: a field that is no file, or more files than `most`.
    """
    given = [*form.getlist(name), *form.getlist(f"{name}[]")]
    if len(given) > most:
        raise UnreadableError(f"there are {len(given)} files '{name}'", f"send {most} at most")
    found = []
    for value in given:
        if not isinstance(value, UploadFile):
            raise UnreadableError(f"{name} is a field, not a file", "send it as a file")
        found.append(await value.read())
    return found


async def generate_form(request: Request, limits: Limits) -> dict[str, Any]:
    """A request from a multipart body: the part "request" is its JSON, the parts "image" and "mask" are files, and so
    are parts "control", which go to the entries of `control` in order.

    Raises:
        UnreadableError, UnsupportedMediaError: it cannot be read.
    """
    async with opened_form(request, limits) as form:
        if unknown := sorted({key.removesuffix("[]") for key in form} - {"request", "image", "mask", "control"}):
            raise UnreadableError(
                f"there is no part '{unknown[0][:60]}'", "the parts are request, image, mask, control"
            )
        text = form.get("request", "{}")
        data = await run_in_threadpool(json_object, await text.read() if isinstance(text, UploadFile) else text)
        for name in ("image", "mask"):
            given = await files_in(form, name, limits.images)
            if given:
                data[name] = given[0] if len(given) == 1 else given
        hints = await files_in(form, "control", _FILES)
        if hints:
            data["control"] = _with_hints(data.get("control"), hints)
    return data


def _with_hints(control: Any, hints: list[Any]) -> list[Any]:
    entries = control if isinstance(control, list) else [{} for _ in hints]
    if len(entries) != len(hints) or not all(isinstance(one, Mapping) for one in entries):
        raise UnreadableError(
            f"there are {len(hints)} files 'control' for {len(entries)} entries", "send one for each entry of `control`"
        )
    return [{**entry, "image": image} for entry, image in zip(entries, hints, strict=True)]


def _no_number(text: str) -> Never:
    raise ValueError(f"{text} is no number")
