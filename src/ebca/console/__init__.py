"""Shared by all command-line tools: one-line errors, exit codes, warnings, progress, options, result files."""

import errno
import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ebca.console.files import check_results, write_json, write_text
from ebca.console.streams import GuardedStream, guarded
from ebca.console.usage import Parser, name_or_path, one_line, path
from ebca.errors import EbcaError

__all__ = [
    "INTERRUPTED",
    "CtrlC",
    "MergeProgress",
    "Parser",
    "PrepareProgress",
    "ProgressLine",
    "check_results",
    "name_or_path",
    "notice",
    "path",
    "run",
    "tell_error",
    "write_json",
    "write_text",
]

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C."""


def run(
    program: str,
    body: Callable[[], int],
    *,
    interrupted: str | Callable[[], str] = "interrupted",
    ctrl_c: "CtrlC | None" = None,
) -> int:
    """Run a command-line tool. Returns its exit code.

    An `EbcaError` becomes one line on stderr and exit code 1; Ctrl-C one with the text `interrupted` and exit code 130,
    as shells report it. Warnings, raised or logged, become one line each, the same line once. Other exceptions are
    bugs and keep their traceback.

    Output that cannot be written ends nothing: the work goes on, and its files are written. If it was standard output,
    the exit code is 1 in the end, and a line says why; if the reader has closed the pipe, that is its own wish, and no
    line does. Standard error holds only messages, which are dropped.

    Args:
        program: the tool's name, for example "ebca-run".
        body: does the work, including to read the command line, and returns the exit code.
        interrupted: printed after Ctrl-C; say what remains and how to continue.
        ctrl_c: for a body that asks it, too.
    """
    with guarded() as out, _warnings_as_lines(program), ctrl_c or CtrlC() as pressed:
        try:
            code = _exit_code(program, body, interrupted, pressed)
        except SystemExit as ended:
            # After --help and --version, and for a wrong option.
            if ended.code in (None, 0) and not _delivered(program, out):
                return 1
            raise
        return code if _delivered(program, out) else code or 1


def _exit_code(program: str, body: Callable[[], int], interrupted: str | Callable[[], str], ctrl_c: "CtrlC") -> int:
    try:
        try:
            return body()
        except Exception:
            # An import that is interrupted fails with an error of its own.
            ctrl_c.check()
            raise
    except EbcaError as error:
        tell_error(program, str(error))
        return 1
    except MemoryError as error:
        detail = f" ({error})" if str(error) else ""
        tell_error(program, f"the memory is too small{detail}; make a smaller image, or fewer at once")
        return 1
    except KeyboardInterrupt:
        _say(program, interrupted if isinstance(interrupted, str) else interrupted())
        return INTERRUPTED


def _delivered(program: str, out: GuardedStream | None) -> bool:
    """Whether everything on standard output could be written; else says why not."""
    if out is None:
        return True
    out.flush()
    if out.error is not None and out.error.errno != errno.EPIPE:
        tell_error(program, f"standard output cannot be written: {out.error.strerror}; result files are not affected")
    return out.error is None


@contextmanager
def _warnings_as_lines(program: str) -> Iterator[None]:
    said: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        if text not in said:
            said.add(text)
            _say(program, f"warning: {text}")

    logger, handler = logging.getLogger("ebca"), _LogHandler(show)
    handlers = list(logger.handlers)
    # Of tools that call each other, the inner one speaks.
    logger.handlers = [*(one for one in handlers if not isinstance(one, _LogHandler)), handler]
    with warnings.catch_warnings():
        # By default, Python drops a warning from a line that has given another one.
        warnings.filterwarnings("always", category=UserWarning, append=True)
        warnings.showwarning = show
        try:
            yield
        finally:
            logger.handlers = handlers


class _LogHandler(logging.Handler):
    """Passes on the text of warnings and errors that this package logs."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage())


def notice(text: str) -> None:
    """Print one line on stderr that is neither a result nor a warning."""
    print(one_line(text), file=sys.stderr, flush=True)


def tell_error(program: str, text: str) -> None:
    """Print one line on stderr about an error that does not end the work."""
    _say(program, f"error: {text}")


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

    _doing, _done, _unit, _why = "preparing", "prepared", "component", "for this machine"

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._line = ProgressLine(stream)
        self._began: float | None = None
        self.seconds: float | None = None

    def __call__(self, done: int, total: int, name: str) -> None:
        """Show that `done` of `total` components are prepared, and that `name` is next."""
        stream = self._stream or sys.stderr
        count = f"{total} {self._unit}" if total == 1 else f"{total} {self._unit}s"
        if self._began is None:
            self._began = time.perf_counter()
            if not stream.isatty():
                text = f"{self._doing} {count} {self._why}; later starts skip this"
                print(text, file=stream, flush=True)
        self._line.update(f"{self._doing} {name} ({min(done + 1, total)} of {total})", done, total)
        if done >= total:
            self.seconds = time.perf_counter() - self._began
            self._began = None
            self.close()
            print(f"{self._done} {count} in {self.seconds:.1f} s", file=stream, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MergeProgress(PrepareProgress):
    """The same for an `on_merge` callback: files of weights that LoRAs and embeddings change."""

    _doing, _done, _unit, _why = "merging", "merged", "file", "of weights with the LoRAs and embeddings"


def _say(program: str, text: str) -> None:
    print(f"{program}: {one_line(text)}", file=sys.stderr, flush=True)


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
