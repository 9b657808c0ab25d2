"""What the OpenAPI document says about bodies."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ebca.runtime.request.fields import FIELD_PARTS

# A host returns files.
_LEFT_OUT = ("output",)

_TEXT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_IMAGE: Mapping[str, Any] = {
    "anyOf": [
        {"type": "string", "description": "base64 of a PNG, JPEG or WebP file, or a data URL"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "object"},
    ]
}
_GAMMA: Mapping[str, Any] = {
    "anyOf": [
        {"type": "number"},
        {"type": "array", "items": {"type": "number"}},
        {"type": "string", "description": "KIND:VALUE[:PARAMETER], as on the command line"},
        {
            "type": "object",
            "required": ["schedule"],
            "properties": {
                "schedule": {"enum": ["constant", "step", "reverse_step", "linear", "exponential"]},
                "value": {"type": "number"},
                "parameter": {"type": "number"},
            },
            "additionalProperties": False,
        },
    ]
}
_FLAG, _NUMBER, _WHOLE = {"type": "boolean"}, {"type": "number"}, {"type": "integer"}
_PAIR = {"type": "array", "items": _WHOLE, "minItems": 2, "maxItems": 2}

_TYPES: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("prompt", "negative_prompt", "prompt_2", "negative_prompt_2"), _TEXT),
    **{name: _PAIR for name, part in FIELD_PARTS.items() if part == "sizes"},
    **dict.fromkeys(("gamma_attn", "gamma_norm", "subject_exclusion", "subject_balance"), _GAMMA),
    **dict.fromkeys(("image", "mask"), _IMAGE),
    **dict.fromkeys(("guidance_scale", "strength", "image_guidance_scale", "norm_factor", "subject_window"), _NUMBER),
    **dict.fromkeys(("steps", "clip_skip"), _WHOLE),
    **dict.fromkeys(
        ("energies", "attention_maps", "composite", "reset_edits", "prompt_weighting", "long_prompts", "vae_tiling"),
        _FLAG,
    ),
    "scheduler": {"type": "string"},
    "seed": {"anyOf": [_WHOLE, {"type": "array", "items": _WHOLE}]},
    "edits": {"type": "array", "items": {"type": "object"}},
    "control": {"type": "array", "items": {"type": "object", "required": ["image"]}},
    "regions": {"type": "object"},
    "repaint": {"type": "object"},
}


class Service(BaseModel):
    """What a request says beside the fields of `GenerateRequest`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    height: int | None = Field(None, description="pixels; default: the model's size, with the image's aspect ratio")
    width: int | None = Field(None, description="likewise")
    num_images: int | None = Field(None, description="default: one, or as many as the lists of the request have")
    previews: int = Field(0, ge=0, description="a preview after each so many evaluations; 0: none")
    timeout_s: float | None = Field(None, description="seconds from now until the job must be done")


class ErrorDetail(BaseModel):
    """What is wrong, and what to do about it."""

    message: str = Field(description="problem and remedy as one line")
    type: str
    param: str | None
    code: str | None
    problem: str
    remedy: str
    request_id: str


class ErrorReply(BaseModel):
    """The body of every response with a status of 400 or more."""

    error: ErrorDetail


class JobProgress(BaseModel):
    """Evaluations of the UNet."""

    done: int
    total: int


class JobError(BaseModel):
    """Why a job ended without images."""

    problem: str
    remedy: str


class JobReply(BaseModel):
    """A job."""

    id: str
    state: str = Field(description="queued, running, done, failed, cancelled, expired or interrupted")
    created: float = Field(description="seconds since 1970, as all times here")
    started: float | None
    finished: float | None
    deadline: float
    position: int | None = Field(description="in the queue, from 1")
    progress: JobProgress
    parameters: dict[str, Any] = Field(description="those that its image files hold")
    images: list[str] = Field(description="addresses of PNG files")
    timings: dict[str, Any] | None = Field(description="seconds per stage")
    error: JobError | None


class JobsReply(BaseModel):
    """The newest jobs first."""

    jobs: list[JobReply]


class Health(BaseModel):
    """Of the service."""

    status: str


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented error responses of an operation, beside those that every operation has."""
    return {status: {"model": ErrorReply} for status in sorted({400, 401, 403, 404, 422, *statuses})}


def request_properties() -> dict[str, Any]:
    """JSON schema of every field of a request."""
    fields = {name: dict(_TYPES.get(name, {})) for name in FIELD_PARTS if name not in _LEFT_OUT}
    return {name: _or_null(rule) for name, rule in fields.items()}


def _or_null(rule: dict[str, Any]) -> dict[str, Any]:
    """Null means the default."""
    return {"anyOf": [rule, {"type": "null"}]} if rule else rule


def generate_body() -> dict[str, Any]:
    """The request body of `POST /v1/generate` in the OpenAPI document."""
    own = Service.model_json_schema()["properties"]
    json_form = {
        "type": "object",
        "title": "Generate",
        "description": "the fields of a request, as in Python and in the parameters of image files",
        "properties": {**request_properties(), **own},
        "additionalProperties": False,
    }
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    multipart = {
        "type": "object",
        "properties": {
            "request": {"type": "string", "description": "the JSON of the other form"},
            **dict.fromkeys(("image", "mask", "control"), files),
        },
        "additionalProperties": False,
    }
    content = {"application/json": {"schema": json_form}, "multipart/form-data": {"schema": multipart}}
    return {"requestBody": {"required": True, "content": content}}
