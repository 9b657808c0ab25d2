"""Many calls over many connections: nothing may be lost or made twice, and every image must be that of a direct run."""

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx

from ebca.errors import EbcaError
from ebca.runtime.engine import Engine
from ebca.runtime.serving.limits import Limits
from ebca.runtime.serving.runner import EngineRunner
from ebca.runtime.serving.work import Asked, Progress

WAYS = ("wait", "events", "openai", "webui")
"""How images are asked for: `?wait=true`, a job and its events, OpenAI's API, the web UI's API."""

_THINGS = ("a red circle", "a blue square", "a green triangle", "a yellow circle and a blue square")
_PATIENCE_S = 600.0
# A sleep instead of what the header says: it counts in seconds, and jobs may take milliseconds.
_SHORTEST_WAIT_S = 0.05


@dataclass
class Found:
    """What a load has shown.

    Attributes:
        seconds: of each call, from its first try to its image.
        jobs: ids, as far as the interface says them.
        ways: number of calls by their way.
        refused: how often the queue was full, and the call was made again.
        wrong: what went wrong, one line each.
    """

    seconds: list[float] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Seconds that a share of the calls took at most."""
        ordered = sorted(self.seconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def requests(count: int, steps: int) -> list[dict[str, Any]]:
    """Different requests."""
    return [
        {"prompt": _THINGS[index % len(_THINGS)], "seed": index, "steps": steps, "gamma_attn": 0.01 * (index % 2)}
        for index in range(count)
    ]


def direct(engine: Engine, asked: Sequence[Mapping[str, Any]]) -> tuple[list[bytes], float]:
    """The PNG file of each request from a plain loop, and its images per second (after the first one)."""
    runner = EngineRunner(engine, Limits())
    files: list[bytes] = []
    began = 0.0
    for request in asked:
        work, _ = runner.prepare(Asked(request))
        files.append(runner.run(work, _goes_on).images[0])
        began = began or time.perf_counter()
    elapsed = time.perf_counter() - began
    runner.close()
    return files, (len(files) - 1) / elapsed if elapsed and len(files) > 1 else 0.0


async def load(
    address: str,
    asked: Sequence[Mapping[str, Any]],
    files: Sequence[bytes],
    found: Found,
    *,
    calls: range,
    connections: int,
    key: str | None = None,
) -> float:
    """Make calls over so many connections at a time. Returns the seconds that all of them took.

    Args:
        address: of the service.
        asked: the requests, used in turn.
        files: what each makes.
        found: what the calls show is added to it.
        calls: their numbers.
        connections: at the same time.
        key: for the service.
    """
    numbers = iter(calls)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=1)

    async def caller(client: httpx.AsyncClient) -> None:
        for number in numbers:
            await _call(client, found, number, asked[number % len(asked)], files[number % len(files)])

    async with AsyncExitStack() as stack:
        # Making a client takes longer than many a call: it reads certificates.
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=address, headers=headers, timeout=_PATIENCE_S, limits=limits)
            )
            for _ in range(connections)
        ]
        began = time.perf_counter()
        await asyncio.gather(*map(caller, clients))
        return time.perf_counter() - began


async def finished_jobs(address: str, key: str | None = None) -> int:
    """How many jobs a service has finished, by its own count."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=address, headers=headers) as client:
        for line in (await client.get("/metrics")).text.splitlines():
            if line.startswith('ebca_jobs_total{state="done"}'):
                return int(float(line.split()[-1]))
    raise EbcaError(f"{address} does not say how many jobs it has finished", "is it ebca-serve?")


async def _call(client: httpx.AsyncClient, found: Found, number: int, request: Mapping[str, Any], file: bytes) -> None:
    way, began = WAYS[number % len(WAYS)], time.perf_counter()
    try:
        while (image := await _WAYS[way](client, dict(request), found)) is None:
            found.refused += 1
            await asyncio.sleep(_SHORTEST_WAIT_S)
    except (httpx.HTTPError, EbcaError, KeyError, ValueError) as error:
        found.wrong.append(f"call {number} ({way}): {type(error).__name__}: {error}"[:300])
        return
    found.seconds.append(time.perf_counter() - began)
    found.ways[way] += 1
    if image != file:
        found.wrong.append(f"call {number} ({way}): another image than that of a direct run")


async def _wait(client: httpx.AsyncClient, request: dict[str, Any], found: Found) -> bytes | None:
    job = await _json(client, "/v1/generate?wait=true", request)
    return None if job is None else await _image(client, job, found)


async def _events(client: httpx.AsyncClient, request: dict[str, Any], found: Found) -> bytes | None:
    job = await _json(client, "/v1/generate", request)
    if job is None:
        return None
    last = ""
    async with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        async for line in stream.aiter_lines():
            last = line if line.startswith("data: ") else last
    return await _image(client, json.loads(last.removeprefix("data: ")), found)


async def _openai(client: httpx.AsyncClient, request: dict[str, Any], _: Found) -> bytes | None:
    reply = await _json(client, "/v1/images/generations", request)
    return None if reply is None else base64.b64decode(reply["data"][0]["b64_json"])


async def _webui(client: httpx.AsyncClient, request: dict[str, Any], _: Found) -> bytes | None:
    more = {name: request.pop(name) for name in ("gamma_attn",)}
    reply = await _json(client, "/sdapi/v1/txt2img", {**request, "alwayson_scripts": {"ebca": {"args": [more]}}})
    return None if reply is None else base64.b64decode(reply["images"][0])


async def _json(client: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the service answers; None if its queue is full. Raises EbcaError for another error."""
    response = await client.post(path, json=body)
    if response.status_code == 429:
        return None
    if response.status_code >= 400:
        raise EbcaError(f"{path} answered {response.status_code}: {response.text[:200]}")
    reply: dict[str, Any] = response.json()
    return reply


async def _image(client: httpx.AsyncClient, job: Mapping[str, Any], found: Found) -> bytes:
    if job["state"] != "done":
        raise EbcaError(f"a job is {job['state']}: {job['error']}")
    found.jobs.append(job["id"])
    return (await client.get(job["images"][0])).content


_WAYS = {"wait": _wait, "events": _events, "openai": _openai, "webui": _webui}


def _goes_on(_: Progress) -> bool:
    return True
