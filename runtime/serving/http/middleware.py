"""Around every call: its id, its log line, its numbers, security headers, who may call, and the size of bodies."""

import json
import logging
import re
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ebca.errors import EbcaError
from ebca.runtime.serving.errors import ForbiddenError, TooLargeError, UnauthorizedError
from ebca.runtime.serving.http.context import Context, Settings, owner_in
from ebca.runtime.serving.http.replies import error_reply

log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# No key is needed for these: nothing of a job is behind them but images by their secret names.
_OPEN = re.compile(r"/|/page/[a-z.-]+|/healthz|/readyz|/openapi\.json|/v1/files/[\w-]+\.png")
_READING = ("GET", "HEAD", "OPTIONS")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Observed:
    """Gives each call an id, counts and logs it, and turns bugs into responses. The outermost part."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        scope["ebca.request_id"] = given if _ID.fullmatch(given) else secrets.token_hex(8)
        began, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = scope["ebca.request_id"]
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            log.exception("a bug", extra={"request_id": scope["ebca.request_id"]})
            if status == 0:
                error = EbcaError("an internal error", "see the service's log for the request_id")
                await error_reply(error, scope, 500)(scope, receive, watched)
        finally:
            self._note(scope, status, time.perf_counter() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # The route, not the address: addresses name jobs, and there is no end of them.
        route = getattr(scope.get("route"), "path", "unknown")
        method = scope["method"] if scope["method"] in (*_READING, "POST", "DELETE") else "other"
        self._context.metrics.request(method, route, status, seconds)
        log.info(
            "request",
            extra={
                "request_id": scope["ebca.request_id"],
                "method": method,
                "route": route,
                "status": status,
                "ms": round(seconds * 1000, 1),
                "owner": owner_in(scope) or None,
            },
        )


class Guarded:
    """Refuses calls by a wrong host name, from pages of other origins, without a key, and too large bodies."""

    def __init__(self, app: ASGIApp, settings: Settings, most_bytes: int) -> None:
        self._app = app
        self._settings = settings
        self._most = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error = self._refusal(scope, headers)
        if error is not None:
            await error_reply(error, scope)(scope, receive, send)
            return
        await self._app(scope, _Counted(receive, self._most), send)

    def _refusal(self, scope: Scope, headers: Headers) -> EbcaError | None:
        settings, host = self._settings, headers.get("host", "")
        name = urlsplit(f"//{host}").hostname if _plain_host(host) else None
        if settings.hosts and name not in settings.hosts:
            # A page can make its own name point here, and would then be of the same origin.
            return ForbiddenError(f"the host '{host[:100]}' is not this service's", "start it with --allowed-host")
        origin = headers.get("origin")
        own = (f"http://{host}", f"https://{host}", *settings.origins)
        if scope["method"] not in _READING and origin is not None and origin not in own:
            return ForbiddenError(f"the origin '{origin[:100]}' may not call", "start the service with --cors-origin")
        if settings.keys is not None and not _OPEN.fullmatch(scope["path"]):
            owner = settings.keys.owner(headers.get("authorization", ""), headers.get("x-api-key", ""))
            if owner is None and scope["method"] != "OPTIONS":
                return UnauthorizedError("the API key is missing or wrong", "send it as `Authorization: Bearer KEY`")
            scope["ebca.owner"] = owner or ""
        length = headers.get("content-length", "0")
        if length.isdecimal() and len(length) < 20 and int(length) > self._most:
            return _too_large(self._most)
        return None


class _Counted:
    """A `receive` that ends once a body is too large, whatever its headers say."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._left = most
        self._most = most

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                # Of this type, so that the framework passes it on.
                raise HTTPException(413, str(_too_large(self._most)))
        return message


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than {most} bytes", "send smaller images")


def _plain_host(host: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9.:\[\]_-]{1,255}", host) is not None and _parses(host)


def _parses(host: str) -> bool:
    try:
        urlsplit(f"//{host}").hostname  # noqa: B018
    except ValueError:
        return False
    return True


class JsonLines(logging.Formatter):
    """Log records as one line of JSON each. Prompts and keys are in none."""

    _FIELDS = ("request_id", "method", "route", "status", "ms", "owner")

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower()}
        line |= {"logger": record.name, "message": record.getMessage()}
        line |= {name: getattr(record, name) for name in self._FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
