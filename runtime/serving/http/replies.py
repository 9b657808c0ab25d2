"""Errors as JSON: problem, remedy, and the fields that OpenAI's clients read."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Scope

from ebca.errors import EbcaError, EngineError, ParameterError
from ebca.runtime.serving.errors import ServiceError
from ebca.runtime.serving.http.context import request_id_in
from ebca.runtime.serving.http.waiting import EndedError

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def status_of(error: EbcaError) -> int:
    """The HTTP status of an error: 400 for what a caller can correct, 500 for the rest."""
    if isinstance(error, ServiceError | EndedError):
        return error.status
    # Those of engines say what this model cannot do.
    return 400 if isinstance(error, ParameterError | EngineError) else 500


def error_reply(
    error: EbcaError, scope: Scope, status: int | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The response for an error."""
    status = status_of(error) if status is None else status
    given = dict(headers or {})
    if isinstance(error, ServiceError) and error.retry_after is not None:
        given["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, EndedError) and status != 503:
        # OpenAI's clients would try again by themselves: the same fails the same.
        given["X-Should-Retry"] = "false"
    if status == 401:
        given["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error_body(error, status, request_id_in(scope))}, status, given)


def error_body(error: EbcaError, status: int, request_id: str) -> dict[str, Any]:
    """The object "error" of a response."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {
        "message": printable(str(error)),
        "type": kind,
        "param": None,
        "code": None,
        "problem": printable(error.problem),
        "remedy": printable(error.remedy),
        "request_id": request_id,
    }


def printable(text: str) -> str:
    """A text without what UTF-8 cannot hold: JSON may name half a character."""
    return text.encode("utf-8", "replace").decode()


async def on_ebca_error(request: Request, error: Exception) -> JSONResponse:
    """Handler of `EbcaError`."""
    assert isinstance(error, EbcaError)
    return error_reply(error, request.scope)


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Handler of bodies and queries of another form than the document says."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    found = ParameterError(f"{where}: {first['msg']}"[:300], "see /openapi.json")
    return error_reply(found, request.scope, 422)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Handler of errors of the framework: unknown addresses and methods, broken multipart bodies."""
    assert isinstance(error, HTTPException)
    detail = error.detail or HTTPStatus(error.status_code).phrase
    remedy = "see /openapi.json for what there is" if error.status_code in (404, 405) else "correct the request"
    return error_reply(EbcaError(str(detail), remedy), request.scope, error.status_code, error.headers)
