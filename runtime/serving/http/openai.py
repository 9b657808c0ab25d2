"""OpenAI's images API, for its official clients. EBCA's fields go beside its own, as `extra_body` of these clients."""

import base64
import re
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from PIL import Image
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse

from ebca.errors import ParameterError
from ebca.runtime.request.fields import FIELD_PARTS
from ebca.runtime.serving.errors import UnknownJobError, UnreadableError
from ebca.runtime.serving.http import schema
from ebca.runtime.serving.http.bodies import files_in, json_object, opened_form
from ebca.runtime.serving.http.context import Context, owner_of
from ebca.runtime.serving.http.waiting import finished_images
from ebca.runtime.serving.live import View
from ebca.runtime.serving.service import Service
from ebca.runtime.serving.work import Asked

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_NAME = re.compile(r"(\w{1,60})(?:\[(\w{0,60})\])?")
# They change nothing here, as most do at OpenAI with one model or another.
_IGNORED = ("quality", "style", "moderation", "user", "output_compression", "input_fidelity")
_TEXTS = ("prompt", "negative_prompt", "scheduler", "model", "size", "response_format", "background", "output_format")
_EBCA = "fields of `POST /v1/generate` beside these (`extra_body` in OpenAI's clients)"


class Generation(BaseModel):
    """The body of `POST /v1/images/generations`, with fields of `POST /v1/generate` beside these."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    response_format: str | None = None
    background: str | None = None
    output_format: str | None = None
    stream: bool | None = None
    partial_images: int | None = None
    timeout_s: float | None = None


class ImageReply(BaseModel):
    """An image: its bytes, or its address."""

    b64_json: str | None = None
    url: str | None = None


class ImagesReply(BaseModel):
    """Images, and the parameters that made them."""

    created: int
    data: list[ImageReply]
    parameters: dict[str, Any]


def router(context: Context) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["OpenAI"])
    service = context.service
    refusals = schema.refusals(409, 413, 415, 429, 500, 503, 504)

    async def reply(request: Request, fields: Generation, images: Mapping[str, Any]) -> JSONResponse:
        await run_in_threadpool(_check, fields, str(context.describe()["model"]))
        asked = asked_of(fields, images)
        job = await run_in_threadpool(service.submit, asked, owner_of(request), fields.timeout_s)
        view, files = await finished_images(service, job, request)
        return JSONResponse(_reply(view, files, fields.response_format, str(request.base_url)))

    @routes.post("/v1/images/generations", response_model=ImagesReply, responses=refusals)
    async def generations(request: Request, fields: Generation) -> Any:
        """Images of a prompt."""
        return await reply(request, fields, {})

    @routes.post("/v1/images/edits", response_model=ImagesReply, responses=refusals, openapi_extra=_edits_body())
    async def edits(request: Request) -> Any:
        """An image with the transparent part of it, or of the mask, regenerated; without any, all of it is changed."""
        async with opened_form(request, service.limits) as form:
            images = await files_in(form, "image", 1)
            masks = await files_in(form, "mask", 1)
            fields = fields_of(form)
        given = await run_in_threadpool(edited, service, images, masks)
        return await reply(request, fields, given)

    @routes.get("/v1/models", responses=schema.refusals())
    def models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [_model(context)]}

    @routes.get("/v1/models/{name}", responses=schema.refusals())
    def model(name: str) -> dict[str, Any]:
        """The model of this name."""
        found = _model(context)
        if found["id"] != name:
            raise _no_model(name, found["id"])
        return found

    return routes


def asked_of(fields: Generation, images: Mapping[str, Any]) -> Asked:
    """What a body asks for. Raises ParameterError for a size that is none."""
    extra = {name: value for name, value in (fields.model_extra or {}).items() if name not in _IGNORED}
    height = width = None
    if fields.size not in (None, "auto"):
        sides = _SIZE.fullmatch(str(fields.size))
        if sides is None:
            raise ParameterError(f"size is {str(fields.size)[:40]!r}", "give WIDTHxHEIGHT, such as 512x512, or auto")
        width, height = int(sides[1]), int(sides[2])
    count = 1 if fields.n is None else fields.n
    return Asked({**extra, "prompt": fields.prompt, **images}, height, width, count)


def edited(service: Service, images: list[bytes], masks: list[bytes]) -> dict[str, Any]:
    """The image and the mask of an edit: white where the mask, or else the image, is transparent.

    Args:
        service: decodes them.
        images, masks: files.

    Raises:
        ParameterError: no image, or a mask without transparent pixels.
        UnreadableError, TooLargeError: as `Service.decode`.
    """
    if not images:
        raise ParameterError("there is no image", "send one as the file `image`")
    image = service.decode("image", images[0])
    hole = _transparent(service.decode("mask", masks[0]) if masks else image)
    if masks and hole is None:
        remedy = "give a PNG whose pixels are transparent where the image is to be changed"
        raise ParameterError("the mask has no transparent pixels", remedy)
    return {"image": image.convert("RGB"), **({} if hole is None else {"mask": hole})}


def fields_of(form: FormData) -> Generation:
    """The fields of a form: EBCA's own as JSON, where they are no texts, or as OpenAI's clients write objects and lists
    (`repaint[eta]`, `seed[]`).

    Raises:
        UnreadableError: a file among them, or a value that cannot be read.
    """
    found: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name.removesuffix("[]") in ("image", "mask"):
            continue
        if isinstance(value, UploadFile):
            raise UnreadableError(f"there is no file '{name[:60]}'", "the files are image and mask")
        parts = _NAME.fullmatch(name)
        if parts is None:
            raise UnreadableError(f"the name '{name[:60]}' cannot be read", "send the field as JSON")
        field, inner = parts[1], parts[2]
        read = value if name in _TEXTS else _value(value)
        if inner is None:
            found[field] = read
        elif inner == "":
            found[field] = [*_of(list, found, field), read]
        else:
            found[field] = {**_of(dict, found, field), inner: read}
    try:
        return Generation.model_validate(found)
    except ValueError as error:
        raise UnreadableError(f"the form cannot be read: {_first(error)}", "see /openapi.json") from None


def _of(kind: type, found: dict[str, Any], field: str) -> Any:
    """What a form has given for a list or an object so far. Raises UnreadableError for something else."""
    before = found.get(field, kind())
    if not isinstance(before, kind):
        raise UnreadableError(f"the form gives '{field[:60]}' in two ways", "send the field as JSON")
    return before


def _value(text: str) -> Any:
    """A number, a list, or an object as JSON; any other text as it is."""
    try:
        return json_object(f'{{"value": {text}}}')["value"]
    except (UnreadableError, KeyError):
        return text


def _first(error: Any) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"[:200]


def _transparent(image: Image.Image) -> Image.Image | None:
    """White where an image is transparent; None if it is nowhere."""
    if image.mode != "RGBA":
        return None
    hole = image.getchannel("A").point([255] * 128 + [0] * 128)
    return hole if hole.getbbox() else None


def _check(fields: Generation, model: str) -> None:
    """Raise an error for what would change the reply, and is not supported."""
    if fields.model not in (None, model):
        raise _no_model(str(fields.model), model)
    if fields.response_format not in (None, "b64_json", "url"):
        raise ParameterError(f"response_format is {fields.response_format!r}"[:80], "give b64_json or url")
    if fields.stream or fields.partial_images:
        raise ParameterError("images are not streamed here", "leave stream out, or use /v1/generate and its events")
    if fields.output_format not in (None, "png"):
        raise ParameterError(f"output_format is {fields.output_format!r}"[:80], "leave it out: images are PNG files")
    if fields.background not in (None, "auto", "opaque"):
        raise ParameterError(f"background is {fields.background!r}"[:80], "leave it out: images are opaque")


def _no_model(name: str, model: str) -> UnknownJobError:
    return UnknownJobError(f"there is no model '{name[:60]}'", f"this service has '{model}'")


def _reply(view: View, files: list[bytes], response_format: str | None, base: str) -> dict[str, Any]:
    if response_format == "url":
        data = [{"url": f"{base}v1/files/{token}.png"} for token in view.job.tokens]
    else:
        data = [{"b64_json": base64.b64encode(file).decode()} for file in files]
    return {"created": int(view.job.created), "data": data, "parameters": dict(view.job.parameters)}


def _model(context: Context) -> dict[str, Any]:
    name = str(context.describe()["model"])
    return {"id": name, "object": "model", "created": int(time.time()), "owned_by": "ebca"}


def _edits_body() -> dict[str, Any]:
    own = Generation.model_json_schema()["properties"]
    texts = {name: {"type": "string"} for name in own} | {"prompt": {"type": "string"}}
    fields = {name: {"type": "string", "description": "as JSON"} for name in FIELD_PARTS if name not in texts}
    files = {name: {"type": "string", "format": "binary"} for name in ("image", "mask")}
    form = {
        "type": "object",
        "description": _EBCA,
        "properties": {**fields, **texts, **files},
        "required": ["prompt", "image"],
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}
