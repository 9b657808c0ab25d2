"""Jobs that wait or run, and jobs as callers see them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ebca.errors import EbcaError
from ebca.runtime.serving.store import Job, State
from ebca.runtime.serving.work import Progress

PROBLEMS = {
    State.CANCELLED: EbcaError("the job was cancelled", "run it again to have its images"),
    State.EXPIRED: EbcaError("the job's time ran out", "ask for less, or give it more time"),
    State.INTERRUPTED: EbcaError("the service ended while the job was running", "run it again"),
}
"""What the states say in which nothing went wrong in the job itself."""

# How much a new duration counts in the mean of what jobs take.
_SHARE = 0.2


@dataclass
class Pace:
    """The mean of what jobs take, in seconds."""

    seconds: float = 2.0

    def add(self, seconds: float) -> None:
        """Count one more job."""
        self.seconds += _SHARE * (seconds - self.seconds)


@dataclass
class LiveJob:
    """What the store does not hold of a job that waits or runs.

    Listeners are told that something has changed and look at the newest state, so a slow one misses steps instead of
    filling memory.

    Attributes:
        job: as it was stored when it was queued or began.
        state: now.
        done, total: evaluations.
        preview: the last one, a PNG file.
        previews: how many there were.
        stop: the state it is to end in; None: it goes on.
        error: why it failed.
        began: when it began to run, of a clock that is never set.
        alike: see `ebca.runtime.serving.work.Work`.
        together: how many jobs run as one batch with it, itself included.
        listeners: are told about changes.
        waiting: are told about its end alone.
    """

    job: Job
    state: State = State.QUEUED
    done: int = 0
    total: int = 0
    preview: bytes | None = None
    previews: int = 0
    stop: State | None = None
    error: EbcaError | None = None
    began: float | None = None
    alike: str | None = None
    together: int = 1
    listeners: list[Callable[[], None]] = field(default_factory=list)
    waiting: list[Callable[[], None]] = field(default_factory=list)

    def take(self, progress: Progress) -> None:
        """Keep the newest progress and preview."""
        self.done, self.total = progress.done, progress.total
        if progress.preview is not None:
            self.preview, self.previews = progress.preview, self.previews + 1


@dataclass(frozen=True)
class View:
    """A job as it is at one moment.

    Attributes:
        job: as it is stored.
        state: of the job.
        position: in the queue, from 1; None: it does not wait.
        done, total: evaluations; 0 before the first.
        preview: the last one, a PNG file; None: there is none.
        previews: how many there were.
        error: why it ended without images.
    """

    job: Job
    state: State
    position: int | None = None
    done: int = 0
    total: int = 0
    preview: bytes | None = None
    previews: int = 0
    error: EbcaError | None = None

    @classmethod
    def of(cls, stored: Job, live: LiveJob | None, position: int | None) -> "View":
        """What is stored, and what is newer."""
        if live is None:
            return cls(stored, stored.state, error=stored.error)
        return cls(
            stored, live.state, position, live.done, live.total, live.preview, live.previews, live.error or stored.error
        )

    def to_json(self, prefix: str = "") -> dict[str, Any]:
        """As the API shows it.

        Args:
            prefix: of addresses: that of the service.
        """
        job = self.job
        address = f"{prefix}/v1/jobs/{job.id}"
        shown: dict[str, Any] = {
            "id": job.id,
            "state": self.state.value,
            "created": job.created,
            "started": job.started,
            "finished": job.finished,
            "deadline": job.deadline,
            "position": self.position,
            "progress": {"done": self.done, "total": self.total},
            "parameters": dict(job.parameters),
            "images": [f"{address}/images/{index}" for index in range(len(job.tokens))],
            "timings": None if job.timings is None else dict(job.timings),
            "error": None,
        }
        if self.error is not None:
            shown["error"] = {"problem": self.error.problem, "remedy": self.error.remedy}
        return shown
