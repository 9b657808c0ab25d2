"""The progress of an export on the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ebca import console
from ebca.export.options import ExportEvent


class ExportProgress:
    """A bar with time left on a terminal, a line per event elsewhere."""

    def __init__(self, out: Console, ctrl_c: console.CtrlC) -> None:
        self._out = out
        self._ctrl_c = ctrl_c
        self._progress: Progress | None = None
        self._said = ""
        if out.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[size]}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=out, transient=True)
            self._task = self._progress.add_task("starting", total=1, size="")

    def __call__(self, event: ExportEvent) -> None:
        self._ctrl_c.check()
        size = f"{event.done / 1e6:.0f} of {event.total / 1e6:.0f} MB"
        if self._progress is None:
            # A plan reports many times while it is built, with the same text.
            if event.text != self._said:
                self._out.print(f"{event.text} ({size})")
            self._said = event.text
        else:
            self._progress.update(
                self._task, description=escape(event.text), completed=event.done, total=max(event.total, 1), size=size
            )

    def __enter__(self) -> "ExportProgress":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress:
            self._progress.stop()
