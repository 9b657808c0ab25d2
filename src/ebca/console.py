"""Shared by all command-line tools: one-line errors, exit codes, warnings, progress, JSON files."""

import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ebca.errors import EbcaError, ParameterError

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C."""


def run(program: str, body: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Run a command-line tool. Returns its exit code.

    An `EbcaError` becomes one line on stderr and exit code 1; Ctrl-C one with the text `interrupted` and exit code 130,
    as shells report it. Python warnings become one line each. If the reader closes the pipe, the tool ends without a
    message. Other exceptions are bugs and keep their traceback.

    Args:
        program: the tool's name, for example "ebca-run".
        body: does the work, and returns the exit code.
        interrupted: printed after Ctrl-C; say what remains and how to continue.
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
        except MemoryError as error:
            detail = f" ({error})" if str(error) else ""
            _say(program, f"error: the memory is too small{detail}; make a smaller image, or fewer at once")
        except KeyboardInterrupt:
            _say(program, interrupted)
            return INTERRUPTED
        except BrokenPipeError:
            _silence_stdout()
        return 1


def notice(text: str) -> None:
    """Print one line on stderr that is neither a result nor a warning."""
    print(_one_line(text), file=sys.stderr, flush=True)


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
            f"cannot write '{path}': {error.strerror or error}", "name a file in a folder that exists and is writable"
        ) from None


def check_folders(*files: str | Path | None) -> None:
    """Raise ParameterError for a file whose folder does not exist; None and "" are ignored."""
    for file in files:
        if file and not Path(file).absolute().parent.is_dir():
            raise ParameterError(f"the folder of '{file}' does not exist", "create it first")


class ProgressLine:
    """A progress bar with text and remaining time on a terminal; prints nothing elsewhere. A context manager.

    Args:
        stream: where to write; None: stderr at the time of the first update.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def update(self, text: str, done: float, total: float) -> None:
        """Show `done` of `total`, with a text."""
        stream = self._stream or sys.stderr
        if not stream.isatty():
            return
        if self._bar is None or self._task is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(file=stream), transient=True)
            self._task = self._bar.add_task(escape(text), total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, description=escape(text))

    def close(self) -> None:
        """Remove the bar. Closing twice is fine; another update shows a new one."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PrepareProgress:
    """An `on_prepare` callback that shows the progress of preparing components.

    On a terminal it is a progress bar with the remaining time, elsewhere a first and a last line. Nothing is shown if
    there is nothing to prepare. A context manager; closing twice is fine.

    Args:
        stream: where to write; None: stderr at the time of the first call.

    Attributes:
        seconds: time that preparing took; None if nothing was prepared.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._line = ProgressLine(stream)
        self._began: float | None = None
        self.seconds: float | None = None

    def __call__(self, done: int, total: int, name: str) -> None:
        """Show that `done` of `total` components are prepared, and that `name` is next."""
        stream = self._stream or sys.stderr
        count = f"{total} component" if total == 1 else f"{total} components"
        if self._began is None:
            self._began = time.perf_counter()
            if not stream.isatty():
                text = f"preparing {count} for this machine; later starts skip this"
                print(text, file=stream, flush=True)
        self._line.update(f"preparing {name} ({min(done + 1, total)} of {total})", done, total)
        if done >= total:
            self.seconds = time.perf_counter() - self._began
            self._began = None
            self.close()
            print(f"prepared {count} in {self.seconds:.1f} s", file=stream, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _say(program: str, text: str) -> None:
    print(f"{program}: {_one_line(text)}", file=sys.stderr, flush=True)


def _one_line(text: str) -> str:
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def _silence_stdout() -> None:
    """Keep the interpreter from flushing into the closed pipe at exit."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


class CtrlC:
    """Remembers Ctrl-C even if its exception is dropped, as in destructors and in imports that catch everything.

    A context manager. Long work calls `check` between its parts.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._before: Any = None

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C has been pressed."""
        if self._pressed:
            raise KeyboardInterrupt

    def __enter__(self) -> "CtrlC":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self._pressed = True
        raise KeyboardInterrupt
