"""The same application on Ray Serve: one ingress with the jobs, and engine replicas on any number of machines.

    serve run ebca.runtime.serving.ray_app:build engine=shapes replicas=2

Needs the extra `ray`. The engine directory must be under the same path on every machine.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from ebca.errors import CancelledError, EbcaError
from ebca.runtime.engine import Engine, load
from ebca.runtime.serving.http.app import create_app
from ebca.runtime.serving.http.context import Context, Settings
from ebca.runtime.serving.http.keys import Keys
from ebca.runtime.serving.http.metrics import Metrics
from ebca.runtime.serving.limits import Limits
from ebca.runtime.serving.runner import EngineRunner
from ebca.runtime.serving.service import Service
from ebca.runtime.serving.store import Store
from ebca.runtime.serving.work import Asked, Made, OnProgress, Progress, Work

log = logging.getLogger(__name__)

_TRIES = 5
_PAUSE_S = 1.0


class Options(BaseModel):
    """What `serve run` and a Serve configuration file can set.

    Attributes:
        engine, device, backend, threads: as in `ebca.load`, on every machine.
        replicas: engines, each of which runs one job at a time.
        cpus, gpus: what each replica reserves of Ray.
        data_dir: of the ingress; on storage that all machines share, if it may move to another one.
        api_key_file, allowed_hosts, cors_origins: as of `ebca-serve`.
        limits: fields of `Limits`.
        grace: seconds that running jobs get to finish.
    """

    engine: str
    device: str = "auto"
    backend: str | None = None
    threads: int | None = None
    replicas: int = 1
    cpus: float = 1
    gpus: float = 0
    data_dir: str = "ebca-data"
    api_key_file: str | None = None
    allowed_hosts: list[str] = []
    cors_origins: list[str] = []
    limits: dict[str, float] = Field(default_factory=dict)
    grace: float = 60.0


@dataclass(frozen=True)
class Failure:
    """An `EbcaError` on its way between machines."""

    problem: str
    remedy: str


def build(options: Options) -> serve.Application:
    """The application."""
    engines = serve.deployment(EngineReplica).options(
        num_replicas=options.replicas,
        # Each makes the images of one job at a time; the others wait in the ingress, where they can be cancelled.
        max_ongoing_requests=1,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
    )
    # One: it owns the jobs. Ray starts it again if it ends.
    front = serve.deployment(Ingress).options(
        num_replicas=1,
        max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=options.grace,
    )
    return front.bind(options, engines.bind(options))


class EngineReplica:
    """An engine, which makes the images of one job at a time."""

    def __init__(self, options: Options) -> None:
        self._engine = _open(options)
        self._runner = EngineRunner(self._engine, _limits(options))
        # A run that was cancelled ends after its evaluation, and the next one may come before.
        self._running = threading.Lock()

    async def run(self, work: Work) -> AsyncIterator[Progress | Made | Failure]:
        """The progress of a job, then its result."""
        loop, stopped = asyncio.get_running_loop(), threading.Event()
        messages: asyncio.Queue[Progress | None] = asyncio.Queue()

        def on_progress(progress: Progress) -> bool:
            loop.call_soon_threadsafe(messages.put_nowait, progress)
            return not stopped.is_set()

        task = asyncio.ensure_future(asyncio.to_thread(self._run, work, on_progress))
        task.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (progress := await messages.get()) is not None:
                yield progress
            yield task.result()
        finally:
            stopped.set()

    def _run(self, work: Work, on_progress: OnProgress) -> Made | Failure:
        with self._running:
            try:
                return self._runner.run(work, on_progress)
            except EbcaError as error:
                return Failure(error.problem, error.remedy)


class RemoteRunner:
    """A `Runner` whose images are made by a replica elsewhere. Requests are checked here.

    A replica that ends in the middle of a job loses nothing but time: another one makes the same images.

    Args:
        local: checks requests; it makes no images, so its engine opens no graphs.
        engines: handle of the replicas.
    """

    def __init__(self, local: EngineRunner, engines: Any) -> None:
        self._local = local
        self._engines = engines

    def describe(self) -> Mapping[str, Any]:
        """See `Runner.describe`."""
        return self._local.describe()

    def prepare(self, asked: Asked) -> tuple[Work, Mapping[str, Any]]:
        """See `Runner.prepare`."""
        return self._local.prepare(asked)

    def run(self, work: Work, on_progress: OnProgress) -> Made:
        """See `Runner.run`."""
        for _ in range(_TRIES):
            try:
                made = self._run(work, on_progress)
            except RayTaskError:
                # A bug, which would happen again.
                raise
            except (RayActorError, RayError, RayServeException) as error:
                log.warning("an engine replica was lost: %s", type(error).__name__)
                made = None
            if made is not None:
                return made
            time.sleep(_PAUSE_S)
        raise EbcaError(f"{_TRIES} engine replicas were lost while they ran the job", "see Ray's log")

    def _run(self, work: Work, on_progress: OnProgress) -> Made | None:
        """The result; None if the replica ended without one."""
        stream = self._engines.run.options(stream=True).remote(work)
        for message in stream:
            if isinstance(message, Made):
                return message
            if isinstance(message, Failure):
                raise EbcaError(message.problem, message.remedy)
            if not on_progress(message):
                stream.cancel()
                raise CancelledError("the run was cancelled")
        return None

    def close(self) -> None:
        """See `Runner.close`."""
        self._local.close()


@serve.ingress()
class Ingress:
    """The jobs, and every HTTP interface."""

    def __init__(self, options: Options, engines: Any) -> None:
        limits, self._grace = _limits(options), options.grace
        # Never closed: it ends with the process.
        self._engine = _open(options)
        local = EngineRunner(self._engine, limits)
        metrics = Metrics()
        self._store = Store(Path(options.data_dir), limits.keep)
        runners = [RemoteRunner(local, engines) for _ in range(options.replicas)]
        self._service = Service(runners, self._store, limits, metrics.job)
        keys = None if options.api_key_file is None else Keys.read(Path(options.api_key_file))
        settings = Settings(keys, tuple(options.allowed_hosts), tuple(options.cors_origins))
        self._context = Context(self._service, settings, metrics)

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Ray after the constructor."""
        self._service.start()
        return create_app(self._context, self._end)

    def _end(self) -> None:
        self._service.shutdown(self._grace)
        self._store.close()


def _open(options: Options) -> Engine:
    return load(options.engine, options.device, options.backend, threads=options.threads)


def _limits(options: Options) -> Limits:
    known = vars(Limits())
    if unknown := sorted(options.limits.keys() - known.keys()):
        raise EbcaError(f"there is no limit '{unknown[0]}'", f"there are {', '.join(known)}")
    return Limits(**{name: type(known[name])(value) for name, value in options.limits.items()})
