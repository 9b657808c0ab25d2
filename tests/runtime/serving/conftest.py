"""One engine, and services of it that end with their test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from helpers.serving import Listening

import ebca
from ebca.runtime.serving.http.context import Context, Settings
from ebca.runtime.serving.limits import Limits
from ebca.runtime.serving.runner import EngineRunner
from ebca.runtime.serving.service import Service
from ebca.runtime.serving.store import Store

OpenService = Callable[..., Service]
OpenHttp = Callable[..., httpx.Client]


@pytest.fixture(scope="session")
def served_engine() -> Iterator[ebca.Engine]:
    with ebca.load("shapes", device="cpu", threads=1) as engine:
        yield engine


@pytest.fixture
def open_service(served_engine: ebca.Engine, tmp_path: Path) -> Iterator[OpenService]:
    """Opens services with fields of `Limits`; `workers` runners, in the folder "data" of the test, unless told else."""
    opened: list[tuple[Service, Store]] = []

    def open_one(
        workers: int = 1,
        folder: str = "data",
        start: bool = True,
        runners: list | None = None,
        max_batch: int = 1,
        **fields,
    ) -> Service:
        limits = Limits(**fields)
        store = Store(tmp_path / folder, limits.keep)
        runners = runners or [EngineRunner(served_engine, limits) for _ in range(workers)]
        service = Service(runners, store, limits, max_batch=max_batch)
        opened.append((service, store))
        if start:
            service.start()
        return service

    yield open_one
    for service, store in opened:
        service.shutdown(grace=0)
        store.close()


@pytest.fixture
def open_http() -> Iterator[OpenHttp]:
    """Serves services on free ports; returns clients."""
    opened: list[tuple[httpx.Client, Listening]] = []

    def open_one(service: Service, **settings) -> httpx.Client:
        listening = Listening(Context(service, Settings(**settings)))
        client = httpx.Client(base_url=listening.address, timeout=60)
        opened.append((client, listening))
        return client

    yield open_one
    for client, listening in opened:
        client.close()
        listening.close()


@pytest.fixture(scope="module")
def runner_class() -> type[EngineRunner]:
    """What makes the images of `client`'s service; a module may have its own."""
    return EngineRunner


@pytest.fixture(scope="module")
def client(
    served_engine: ebca.Engine, runner_class: type[EngineRunner], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of one service of the module."""
    limits = Limits(upload_bytes=1_000_000, upload_pixels=1_000_000)
    store = Store(tmp_path_factory.mktemp("data"))
    service = Service([runner_class(served_engine, limits)], store, limits)
    service.start()
    listening = Listening(Context(service))
    with httpx.Client(base_url=listening.address, timeout=60) as client:
        yield client
    listening.close()
    service.shutdown(grace=0)
    store.close()
