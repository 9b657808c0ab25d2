"""What all command-line tools share: errors as one line, exit codes, warnings, progress, JSON files."""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ebca.errors import EbcaError, ParameterError


def run(program: str, body: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Run the body of a command-line tool; its result is the exit code.

    An `EbcaError` becomes one line on stderr and exit code 1; so does Ctrl-C, with the text `interrupted` (say there
    what remains and how to go on). Python warnings become one line each. A reader that closes the pipe ends the tool
    quietly. Anything else is a bug and keeps its traceback.

    Args:
        program: the tool's name, e.g. "ebca-run".
        body: does the work.
        interrupted: what to say after Ctrl-C.
    """
    with warnings.catch_warnings():

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            _say(program, f"warning: {message}")

        warnings.showwarning = show
        try:
            code = body()
            sys.stdout.flush()
            return code
        except EbcaError as error:
            _say(program, f"error: {error}")
        except KeyboardInterrupt:
            _say(program, interrupted)
        except BrokenPipeError:
            _silence_stdout()
        return 1


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write `data` as indented JSON.

    Raises:
        ParameterError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ParameterError(
            f"cannot write '{path}': {error.strerror or error}; name a file in a folder that exists"
        ) from None


class PrepareProgress:
    """An `on_prepare` callback that shows "preparing component k of n" and the time left, on stderr.

    On a terminal it is one moving line; elsewhere one line at the start and one at the end. Nothing is shown when
    nothing has to be prepared. A context manager; closing twice is fine.

    Args:
        stream: where to write; None: stderr as it is at the first call.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._began: float | None = None
        #: Seconds from the first component to the last; None where nothing was prepared.
        self.seconds: float | None = None

    def __call__(self, done: int, total: int, name: str) -> None:
        """`done` of `total` components are prepared; `name` is next."""
        stream = self._stream or sys.stderr
        if self._began is None:
            self._began = time.perf_counter()
            self._start(stream, total)
        if self._bar is not None and self._task is not None:
            text = f"preparing {name} ({min(done + 1, total)} of {total})" if name else "prepared"
            self._bar.update(self._task, completed=done, description=text)
        if done >= total:
            self.seconds = time.perf_counter() - self._began
            self.close()
            parts = "component" if total == 1 else "components"
            print(f"prepared {total} {parts} in {self.seconds:.1f} s", file=stream, flush=True)
            self._began = None

    def close(self) -> None:
        """End the moving line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, stream: TextIO, total: int) -> None:
        if not stream.isatty():
            parts = "component" if total == 1 else "components"
            print(f"preparing {total} {parts} for this machine; later starts skip this", file=stream, flush=True)
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(file=stream),
            transient=True,
        )
        self._task = self._bar.add_task("preparing", total=total)
        self._bar.start()


def _say(program: str, text: str) -> None:
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    print(f"{program}: {line}", file=sys.stderr, flush=True)


def _silence_stdout() -> None:
    """Keep the interpreter from flushing into the closed pipe on its way out."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
