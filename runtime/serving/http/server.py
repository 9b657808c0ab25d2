"""Runs the application with uvicorn until a signal ends it."""

import logging
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from ebca import console
from ebca.errors import ParameterError
from ebca.runtime.serving.http.app import create_app
from ebca.runtime.serving.http.context import Context, Settings
from ebca.runtime.serving.http.keys import Keys
from ebca.runtime.serving.http.metrics import Metrics
from ebca.runtime.serving.http.middleware import JsonLines

__all__ = ["Context", "Metrics", "run", "settings_of"]


def settings_of(key_file: Path | None, hosts: Sequence[str], origins: Sequence[str]) -> Settings:
    """The settings that a command line gives. Raises ParameterError as `Keys.read`."""
    return Settings(None if key_file is None else Keys.read(key_file), tuple(hosts), tuple(origins))


def run(context: Context, host: str, port: int, grace: float) -> None:
    """Serve until SIGTERM or SIGINT. Calls that wait for running jobs are answered within `grace` seconds.

    Raises:
        ParameterError: the address cannot be used.
    """
    listening = _bound(host, port)
    _log_as_json()
    config = uvicorn.Config(
        create_app(context),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(round(grace), 1),
        h11_max_incomplete_event_size=64 * 1024,
    )
    if context.settings.keys is None and host not in ("127.0.0.1", "::1", "localhost"):
        console.notice(f"ebca-serve: warning: everyone who can reach {host} may use this service; see --api-key-file")
    shown = f"[{host}]" if ":" in host else host
    console.notice(f"serving http://{shown}:{listening.getsockname()[1]}")
    _Server(config, context).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Lets the service take no more jobs as soon as a signal comes, so that calls that wait for queued ones end."""

    def __init__(self, config: uvicorn.Config, context: Context) -> None:
        super().__init__(config)
        self._context = context

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server`, which would raise the signal again in the end: it would count as a failure."""
        # Not here: a signal may come while this thread holds a lock.
        threading.Thread(target=self._context.service.drain, daemon=True).start()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        problem = f"the address {host}:{port} cannot be used: {error}"
        raise ParameterError(problem, "choose another with --host and --port") from None


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("ebca.runtime.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name.startswith("ebca") else logging.WARNING)
