"""A job as server-sent events."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

from ebca.runtime.serving.errors import UnknownJobError
from ebca.runtime.serving.http.waiting import changes
from ebca.runtime.serving.live import View
from ebca.runtime.serving.service import Service
from ebca.runtime.serving.store import State

_ALIVE_S = 15.0


async def events(service: Service, job: str, owner: str) -> AsyncIterator[bytes]:
    """What happens to a job, until it has ended: `queued` with its position, `progress`, `preview` with a PNG as
    base64, and one event with the name of its last state and the whole job. A comment every 15 seconds keeps the
    connection alive. A slow reader gets the newest state, not all of them."""
    try:
        async for one in _events(service, job, owner):
            yield one
    except UnknownJobError as error:
        yield event("removed", {"problem": error.problem, "remedy": error.remedy})


async def _events(service: Service, job: str, owner: str) -> AsyncIterator[bytes]:
    sent: tuple[Any, ...] | None = None
    previews = 0
    async for view in changes(service, job, owner, _ALIVE_S):
        now = (view.state, view.position, view.done, view.total)
        if view.state.final:
            yield event(view.state.value, view.to_json())
            return
        if now == sent and view.previews == previews:
            yield b": alive\n\n"
            continue
        if now != sent:
            sent = now
            yield _step(view)
        if view.preview is not None and view.previews != previews:
            previews = view.previews
            yield event("preview", {"done": view.done, "png": base64.b64encode(view.preview).decode()})
    yield event("closing", {"problem": "the service is being shut down", "remedy": "look at the job later"})


def event(name: str, data: Any) -> bytes:
    """One event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def _step(view: View) -> bytes:
    if view.state is State.QUEUED:
        return event("queued", {"position": view.position})
    return event("progress", {"done": view.done, "total": view.total})
