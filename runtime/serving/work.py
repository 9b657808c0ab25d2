"""What a job asks for, and what comes back: plain values that can be stored, and sent to another machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Work:
    """A request that has been checked.

    Attributes:
        request: as `ebca.runtime.request.serialization.to_json` writes it: images are embedded, the seed is given.
        height, width: of the images, in pixels.
        count: of the images.
        previews: a preview after each so many evaluations; 0: none.
        alike: the same text for works that may run as one batch; None: this one runs alone.
    """

    request: Mapping[str, Any]
    height: int
    width: int
    count: int
    previews: int = 0
    alike: str | None = None


@dataclass(frozen=True)
class Progress:
    """State of a run.

    Attributes:
        done, total: evaluations.
        preview: PNG of all images as they look now; None if there is no new one.
    """

    done: int
    total: int
    preview: bytes | None = None


@dataclass(frozen=True)
class Made:
    """The result of a run.

    Attributes:
        images: PNG files, which hold the parameters that made them.
        parameters: of the result.
        timings: seconds per stage.
        energies: see `ebca.runtime.serving.telemetry`; None if they were not asked for.
        attention: likewise.
    """

    images: tuple[bytes, ...]
    parameters: Mapping[str, Any]
    timings: Mapping[str, Any]
    energies: Mapping[str, Any] | None = None
    attention: Mapping[str, Any] | None = None


OnProgress = Callable[[Progress], bool]
"""Called after each evaluation; False cancels."""


class Runner(Protocol):
    """Makes images: an engine in this process, or one elsewhere."""

    def describe(self) -> Mapping[str, Any]:
        """The model: see `EngineRunner.describe`."""
        ...

    def prepare(self, asked: "Asked") -> tuple[Work, Mapping[str, Any]]:
        """Check a request completely. Returns the work, and the parameters that its images will have. Any thread.

        Raises:
            ParameterError, EngineError: as `Session.generate`.
        """
        ...

    def run(self, work: Work, on_progress: OnProgress) -> Made:
        """Make the images. One call at a time.

        Raises:
            CancelledError: `on_progress` returned False.
            EbcaError: as `Session.generate`.
        """
        ...

    def close(self) -> None:
        """Free what `run` keeps."""
        ...


@runtime_checkable
class BatchRunner(Runner, Protocol):
    """A runner that can run jobs together."""

    def run_together(self, works: Sequence[Work], on_progress: Sequence[OnProgress]) -> Sequence[Made | None]:
        """Make the images of works that are alike, in one batch. Images are those that `run` makes of each work alone.

        Args:
            works: at least one.
            on_progress: of each work.

        Returns:
            The result of each; None: its `on_progress` returned False.

        Raises:
            EbcaError: as `Session.generate`, for any of them.
        """
        ...


@dataclass(frozen=True)
class Asked:
    """What a caller asks for, not checked yet.

    Attributes:
        request: JSON of a request, without files' names.
        height, width, num_images: as in `Engine.generate`.
        previews: see `Work`.
    """

    request: Mapping[str, Any]
    height: int | None = None
    width: int | None = None
    num_images: int | None = None
    previews: int = 0
