"""The application: every interface of a service."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from ebca.errors import EbcaError
from ebca.runtime.serving.errors import UnknownJobError
from ebca.runtime.serving.http import metrics, native, openai, replies, schema, webui
from ebca.runtime.serving.http.context import Context
from ebca.runtime.serving.http.middleware import Guarded, Observed
from ebca.version import __version__

PAGE = Path(__file__).parent / "page"

_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}
_ABOUT = """Images from prompts with Energy-Based Cross Attention. Requests become jobs, which wait in a queue.
Every error is JSON with `problem` and `remedy`."""


def create_app(context: Context, at_end: Callable[[], None] | None = None) -> FastAPI:
    """The application of a started service.

    Args:
        context: of the service, which the caller shuts down.
        at_end: called when the server ends; None: the service takes no more jobs then.
    """
    settings, service = context.settings, context.service
    context.metrics.watch(service.counts)
    outside = [Middleware(Observed, context=context)]
    if settings.origins:
        outside.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID"],
                expose_headers=["X-Request-ID", "Retry-After", "Location"],
            )
        )
    outside.append(Middleware(Guarded, settings=settings, most_bytes=service.limits.upload_bytes))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(at_end or service.drain)

    app = FastAPI(
        title="ebca",
        version=__version__,
        description=_ABOUT,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        middleware=outside,
        lifespan=lifespan,
        exception_handlers={
            EbcaError: replies.on_ebca_error,
            RequestValidationError: replies.on_invalid,
            HTTPException: replies.on_http_error,
        },
    )
    for interface in (native, openai, webui):
        app.include_router(interface.router(context))
    _add_health(app, context)
    _add_page(app)
    return app


def _add_health(app: FastAPI, context: Context) -> None:
    service = context.service
    unready: dict[int | str, dict[str, Any]] = {503: {"model": schema.Health, "description": "no jobs are taken"}}

    @app.get("/healthz", response_model=schema.Health, tags=["operation"])
    def healthz() -> Any:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=schema.Health, responses=unready, tags=["operation"])
    def readyz() -> Any:
        """Jobs are taken and run."""
        return {"status": "ready"} if service.ready else JSONResponse({"status": "not ready"}, 503)

    @app.get("/metrics", response_class=Response, responses=schema.refusals(), tags=["operation"])
    def numbers() -> Response:
        """Numbers for Prometheus."""
        return Response(context.metrics.text(), media_type=metrics.CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    """The web page: files of the package by their names, and no others."""
    files = {one.name: one for one in PAGE.iterdir() if one.suffix in _TYPES}

    def of(name: str) -> Response:
        # A new version of the program is seen at once.
        headers = {"Cache-Control": "no-cache"}
        return Response(files[name].read_bytes(), media_type=_TYPES[files[name].suffix], headers=headers)

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return of("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    def part(name: str) -> Response:
        if name not in files:
            raise UnknownJobError(f"there is no file '{name[:60]}'", "see /")
        return of(name)
