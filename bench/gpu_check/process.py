"""Runs a command in a process group of its own, and ends the group at a limit."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK_SECONDS = 1.0
_GRACE_SECONDS = 2.0


@dataclass(frozen=True)
class Outcome:
    """Exit code, None if the limit ended the command; and how long it ran."""

    code: int | None
    seconds: float


def run(words: Sequence[str], log: Path, limit: float, tick: Callable[[float], None] = lambda seconds: None) -> Outcome:
    """Run a command, with everything it prints in `log`. No process of its group outlives this call.

    Args:
        words: the command.
        log: file that is written.
        limit: seconds.
        tick: called about once per second with the seconds so far.
    """
    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while True:
            passed = time.monotonic() - began
            if passed >= limit:
                return Outcome(None, passed)
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(min(_TICK_SECONDS, limit - passed))
                return Outcome(code, time.monotonic() - began)
            tick(time.monotonic() - began)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the group: politely if the command itself still runs, then for certain."""
    # The group has the number of its first process.
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
