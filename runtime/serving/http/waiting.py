"""Waits for jobs without holding a thread."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from ebca.errors import EbcaError
from ebca.runtime.serving.live import View
from ebca.runtime.serving.service import Service
from ebca.runtime.serving.store import Job, State


async def changes(service: Service, job: str, owner: str, at_least_every: float) -> AsyncIterator[View]:
    """A job now and after every change, until it has ended. One that stays queued in a service that ends is the last.

    Args:
        service: runs it.
        job, owner: of the job.
        at_least_every: seconds after which it is looked at without a change.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        loop.call_soon_threadsafe(changed.set)

    end = service.watch(job, tell)
    try:
        while True:
            changed.clear()
            view = await run_in_threadpool(service.view, job, owner)
            yield view
            if _last(service, view):
                return
            try:
                async with asyncio.timeout(at_least_every):
                    await changed.wait()
            except TimeoutError:
                continue
    finally:
        end()


async def ended(service: Service, job: Job) -> View:
    """A job once it has ended, or as it is when the service ends."""
    views = [view async for view in changes(service, job.id, job.owner, 30) if _last(service, view)]
    return views[-1]


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


def _last(service: Service, view: View) -> bool:
    """Whether nothing more happens to the job in this process."""
    return view.state.final or (service.draining and view.state is State.QUEUED)


async def _left(request: Request) -> None:
    """Returns when the connection is closed. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
