"""The API of this project: jobs from the request's own JSON."""

from typing import Any

from fastapi import APIRouter, Query
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ebca.errors import ParameterError
from ebca.runtime.serving.http import schema
from ebca.runtime.serving.http.bodies import generate_form, json_body, kind_of
from ebca.runtime.serving.http.context import Context, owner_of
from ebca.runtime.serving.http.events import events
from ebca.runtime.serving.http.waiting import ended
from ebca.runtime.serving.live import View
from ebca.runtime.serving.store import Job
from ebca.runtime.serving.telemetry import attention_sheet
from ebca.runtime.serving.work import Asked

_OWN = ("height", "width", "num_images", "previews", "timeout_s")
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "a PNG file"}}
_WAIT = Query(False, description="answer when the job has ended")


def router(context: Context) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["jobs"])
    _add_making(routes, context)
    _add_jobs(routes, context)
    _add_results(routes, context)
    return routes


def asked_of(data: dict[str, Any]) -> tuple[Asked, float | None]:
    """What the JSON of a call asks for, and its seconds. Raises ParameterError."""
    try:
        own = schema.Service.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ParameterError(f"{name}: {first['msg']}", "see /openapi.json") from None
    request = {name: value for name, value in data.items() if name not in _OWN}
    return Asked(request, own.height, own.width, own.num_images, own.previews), own.timeout_s


def job_reply(view: View, prefix: str = "") -> JSONResponse:
    """A job: 200 if it has ended, else 202."""
    job = view.job.id
    return JSONResponse(view.to_json(prefix), 200 if view.state.final else 202, {"Location": f"{prefix}/v1/jobs/{job}"})


def _add_making(routes: APIRouter, context: Context) -> None:
    service = context.service
    jobs: dict[int | str, dict[str, Any]] = {
        200: {"model": schema.JobReply, "description": "the job has ended"},
        202: {"model": schema.JobReply, "description": "the job waits or runs"},
    }

    async def reply(job: Job, wait: bool) -> JSONResponse:
        view = await ended(service, job) if wait else await run_in_threadpool(service.view, job.id, job.owner)
        return job_reply(view)

    @routes.post(
        "/v1/generate",
        status_code=202,
        response_model=None,
        responses={**jobs, **schema.refusals(413, 415, 429, 503)},
        openapi_extra=schema.generate_body(),
    )
    async def generate(request: Request, wait: bool = _WAIT) -> JSONResponse:
        """Make images. The request is checked completely before the job is taken."""
        if kind_of(request) == "multipart/form-data":
            data = await generate_form(request, service.limits)
        else:
            data = await json_body(request)
        asked, seconds = asked_of(data)
        return await reply(await run_in_threadpool(service.submit, asked, owner_of(request), seconds), wait)

    @routes.post(
        "/v1/jobs/{job}/run",
        status_code=202,
        response_model=None,
        responses={**jobs, **schema.refusals(409, 429, 503)},
    )
    async def run_again(request: Request, job: str, wait: bool = _WAIT) -> JSONResponse:
        """Run a job again that ended without images."""
        return await reply(await run_in_threadpool(service.run_again, job, owner_of(request)), wait)


def _add_jobs(routes: APIRouter, context: Context) -> None:
    service = context.service

    @routes.get("/v1/model", responses=schema.refusals())
    def model() -> dict[str, Any]:
        """The model: sizes, schedulers, tasks, defaults."""
        return dict(context.describe())

    @routes.get("/v1/jobs", response_model=schema.JobsReply, responses=schema.refusals())
    def jobs(request: Request, limit: int = Query(50, ge=1, le=200)) -> Any:
        """The newest jobs, of the key that asks."""
        return {"jobs": [view.to_json() for view in service.views(owner_of(request), limit)]}

    @routes.get("/v1/jobs/{job}", response_model=schema.JobReply, responses=schema.refusals())
    def job(request: Request, job: str) -> Any:
        """A job as it is now."""
        return service.view(job, owner_of(request)).to_json()

    @routes.delete("/v1/jobs/{job}", response_model=schema.JobReply, responses=schema.refusals(409, 503))
    def cancel(
        request: Request, job: str, purge: bool = Query(False, description="remove a job that has ended")
    ) -> Any:
        """Cancel a job that waits or runs. One that has ended stays as it is, unless `purge` removes it."""
        view = service.cancel(job, owner_of(request))
        if purge:
            service.remove(job, owner_of(request))
        return view.to_json()

    @routes.get(
        "/v1/jobs/{job}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "events"}, **schema.refusals()},
    )
    async def job_events(request: Request, job: str) -> StreamingResponse:
        """What happens to a job, as server-sent events: queued, progress, preview, and the name of its last state."""
        owner = owner_of(request)
        # Else an unknown job would be an error within a response that has begun.
        await run_in_threadpool(service.view, job, owner)
        headers = {"X-Accel-Buffering": "no"}
        return StreamingResponse(events(service, job, owner), media_type="text/event-stream", headers=headers)


def _add_results(routes: APIRouter, context: Context) -> None:
    service = context.service
    one = Query(0, ge=0, lt=2**31, description="which image of the job")

    @routes.get("/v1/jobs/{job}/images/{index}", response_class=Response, responses={**_PNG, **schema.refusals()})
    def image(request: Request, job: str, index: int) -> Response:
        """An image of a job, with the parameters that made it. The index counts from 0."""
        # SQLite has integers of 64 bits.
        data = service.image(job, min(max(index, -1), 2**31), owner_of(request))
        return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=31536000, immutable"})

    @routes.get("/v1/files/{token}.png", response_class=Response, responses={**_PNG, **schema.refusals()})
    def file(token: str) -> Response:
        """An image by its secret name, for which no key is needed."""
        return Response(service.image_named(token), media_type="image/png")

    @routes.get("/v1/jobs/{job}/energies", responses=schema.refusals())
    def energies(request: Request, job: str) -> dict[str, Any]:
        """The energies of every evaluation and layer, if the request asked for them."""
        return dict(service.telemetry(job, "energies", owner_of(request)))

    @routes.get("/v1/jobs/{job}/attention", responses=schema.refusals())
    def attention(request: Request, job: str) -> dict[str, Any]:
        """The attention to each token at each position, if the request asked for it."""
        return dict(service.telemetry(job, "attention", owner_of(request)))

    @routes.get("/v1/jobs/{job}/attention.png", response_class=Response, responses={**_PNG, **schema.refusals()})
    def attention_image(request: Request, job: str, image: int = one) -> Response:
        """The same as an image of labelled tiles."""
        found = service.telemetry(job, "attention", owner_of(request))
        data = attention_sheet(service.image(job, image, owner_of(request)), found["images"][image])
        return Response(data, media_type="image/png")
