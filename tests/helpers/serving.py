"""Waits for jobs, and runners that do what a test says."""

import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn

from ebca.errors import CancelledError
from ebca.runtime.serving.http.app import create_app
from ebca.runtime.serving.http.context import Context
from ebca.runtime.serving.live import View
from ebca.runtime.serving.service import Service
from ebca.runtime.serving.store import Job
from ebca.runtime.serving.work import Asked, Made, OnProgress, Progress, Work


def finished(service: Service, job: Job, seconds: float = 30) -> View:
    """A job once it has ended."""
    changed = threading.Event()
    end = service.watch(job.id, changed.set)
    until = time.monotonic() + seconds
    while not (view := service.view(job.id, job.owner)).state.final:
        assert time.monotonic() < until, f"the job is still {view.state}"
        changed.wait(0.5)
        changed.clear()
    end()
    return view


def eventually(true: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until something is so."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.005)


class SlowRunner:
    """Needs no engine: runs until `go` is set, one evaluation after the other."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go = threading.Event()
        self.runs = 0
        self._error = error

    def describe(self) -> Mapping[str, Any]:
        return {"model": "slow", "schedulers": ["ddim"], "device": "cpu", "backend": "none", "multiple": 8}

    def prepare(self, asked: Asked) -> tuple[Work, Mapping[str, Any]]:
        return Work(dict(asked.request), 8, 8, 1), dict(asked.request)

    def run(self, work: Work, on_progress: OnProgress) -> Made:
        self.runs += 1
        done = 0
        while not self.go.wait(0.005):
            done += 1
            if not on_progress(Progress(done, done + 1)):
                raise CancelledError("cancelled")
        if self._error is not None:
            raise self._error
        return Made((b"png",), dict(work.request), {})

    def close(self) -> None:
        pass


class Listening:
    """A service on a free port, in a thread of this process."""

    def __init__(self, context: Context) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(create_app(context), log_config=None, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()
        eventually(lambda: self._server.started)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
