"""What every part of the HTTP interface needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from ebca.runtime.serving.http.keys import Keys
from ebca.runtime.serving.http.metrics import Metrics
from ebca.runtime.serving.service import Service


@dataclass(frozen=True)
class Settings:
    """Of the HTTP interface.

    Attributes:
        keys: who may call; None: everyone who can reach it.
        hosts: names by which it may be called, without ports; empty: any.
        origins: of pages elsewhere that may call it (CORS).
    """

    keys: Keys | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What the interfaces of one service share.

    Attributes:
        service: runs the jobs.
        settings: of the HTTP interface.
        metrics: are counted.
    """

    service: Service
    settings: Settings = field(default_factory=Settings)
    metrics: Metrics = field(default_factory=Metrics)

    def describe(self) -> Mapping[str, Any]:
        """The model that makes the images."""
        return self.service.describe()


def owner_of(request: Request) -> str:
    """Whose jobs a call may see: the name of its key; "" without keys."""
    return owner_in(request.scope)


def owner_in(scope: Scope) -> str:
    """See `owner_of`."""
    return str(scope.get("ebca.owner", ""))


def request_id_in(scope: Scope) -> str:
    """The id of a call, which its log line and its response have."""
    return str(scope.get("ebca.request_id", ""))
