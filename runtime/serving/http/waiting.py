"""Waits for jobs without holding a thread."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import ClassVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from ebca.errors import EbcaError
from ebca.runtime.serving.live import View
from ebca.runtime.serving.service import Service
from ebca.runtime.serving.store import Job, State

_LOOKS_AGAIN_S = 30.0


async def changes(service: Service, job: str, owner: str, at_least_every: float) -> AsyncIterator[View]:
    """A job now and after every change, until it has ended. One that stays queued in a service that ends is the last.

    Args:
        service: runs it.
        job, owner: of the job.
        at_least_every: seconds after which it is looked at without a change.
    """
    async with aclosing(_told(service, job, at_least_every, only_end=False)) as told:
        async for _ in told:
            live = service.live_view(job, owner)
            view = await run_in_threadpool(service.view, job, owner) if live is None else live
            yield view
            if view.state.final or (service.draining and view.state is State.QUEUED):
                return


async def ended(service: Service, job: Job) -> View:
    """A job once it has ended, or as it is when the service ends."""
    async with aclosing(_told(service, job.id, _LOOKS_AGAIN_S, only_end=True)) as told:
        async for _ in told:
            if service.is_over(job.id):
                break
    return await run_in_threadpool(service.view, job.id, job.owner)


async def _told(service: Service, job: str, at_least_every: float, *, only_end: bool) -> AsyncGenerator[None]:
    """Now, and whenever the service says something of a job; see `Service.watch`."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        loop.call_soon_threadsafe(changed.set)

    end = service.watch(job, tell, only_end=only_end)
    try:
        while True:
            changed.clear()
            yield
            with suppress(TimeoutError):
                async with asyncio.timeout(at_least_every):
                    await changed.wait()
    finally:
        end()


async def ended_or_left(service: Service, job: Job, request: Request) -> View:
    """As `ended`. If the caller goes away, nobody would ever see the images: the job is cancelled."""
    waiting = asyncio.ensure_future(ended(service, job))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await run_in_threadpool(service.cancel, job.id, job.owner)
        return await waiting
    finally:
        for task in (waiting, leaving):
            task.cancel()


async def finished_images(service: Service, job: Job, request: Request) -> tuple[View, list[bytes]]:
    """A job that is done, and its PNG files. If the caller goes away, the job is cancelled.

    Raises:
        EndedError: it has ended without images.
    """
    view = await ended_or_left(service, job, request)
    if view.state is not State.DONE:
        raise EndedError(view)
    files = [await run_in_threadpool(service.image, job.id, n, job.owner) for n in range(len(view.job.tokens))]
    return view, files


class EndedError(EbcaError):
    """A call whose job ended without images.

    Attributes:
        status: of the HTTP response.
    """

    _STATUSES: ClassVar[dict[State, int]] = {State.FAILED: 500, State.CANCELLED: 409, State.EXPIRED: 504}

    def __init__(self, view: View) -> None:
        error = view.error or EbcaError("the service is being shut down", "try again later")
        super().__init__(error.problem, error.remedy)
        self.status = self._STATUSES.get(view.state, 503)


async def _left(request: Request) -> None:
    """Returns when the connection is closed. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
