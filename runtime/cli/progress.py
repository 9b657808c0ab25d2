"""The progress of one run or of many."""

import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ebca import console
from ebca.runtime.sampling.progress import StepInfo


class Steps:
    """An `on_step` callback: progress on a terminal, and Ctrl-C even if its exception was swallowed.

    A context manager. One run counts its evaluations; of many runs, the bar shows how many are done. `watch`, if it is
    set, is called at every evaluation too.

    Args:
        quiet: show nothing.
        ctrl_c: remembers Ctrl-C.
        runs: number of runs.
    """

    def __init__(self, quiet: bool, ctrl_c: console.CtrlC, runs: int = 1) -> None:
        self._ctrl_c = ctrl_c
        self.watch: Callable[[StepInfo], None] | None = None
        self._runs = runs
        self._run, self._phase, self._phases = 0, 0, 1
        count = [MofNCompleteColumn()] if runs == 1 else []
        columns = (TextColumn("{task.description}"), BarColumn(), *count, TimeRemainingColumn())
        out = Console(stderr=True)
        self._progress = Progress(
            *columns,
            console=out,
            transient=True,
            disable=quiet or not out.is_terminal,
            # Into a pipe or a file, results go unchanged; on a terminal they appear above the bar.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._progress.add_task("denoising", total=None if runs == 1 else runs)

    def begin(self, run: int, phases: int = 1) -> None:
        """Show that a run begins, counted from 0, which has one or more phases."""
        self._run, self._phase, self._phases = run, -1, phases

    def phase(self, name: str) -> None:
        """Show that the next phase of the run begins."""
        self._phase += 1
        if self._runs == 1:
            self._progress.reset(self._task, description=name)
        else:
            self._progress.update(self._task, description=f"prompt {self._run + 1} of {self._runs}: {name}")

    def __call__(self, info: StepInfo) -> bool:
        self._ctrl_c.check()
        if self.watch is not None:
            self.watch(info)
        done, total = info.index + 1, info.total
        if self._runs == 1:
            self._progress.update(self._task, completed=done, total=total)
        else:
            self._progress.update(self._task, completed=self._run + (self._phase + done / total) / self._phases)
        return True

    def __enter__(self) -> "Steps":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
