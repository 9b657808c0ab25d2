"""Exports that are killed with SIGKILL at any moment, and what the next export makes of what they leave.

A moment is a file operation in the folder of the output: the process is killed right before it, with whatever it has
buffered. `python tests/helpers/kills.py 200` kills 200 exports of the built-in model's UNet.
"""

import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ebca.engines.contract.directory import open_directory, sha256
from ebca.errors import EngineError
from ebca.export.api import export_unet
from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG
from ebca.export.checkpoint.tiny import build_tiny
from ebca.export.graph.traced_unet import TracedUNet
from ebca.export.scheduler_tables import build_tables

Export = Callable[[Path], object]
"""Exports into a folder; run in a process of its own."""

# Audit events of Python that name a path first. Deleting a tree reports each of its files by a name without a folder.
_EVENTS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"})
_INSIDE_TREES = frozenset({"os.remove", "os.rmdir"})


@dataclass(frozen=True)
class Kill:
    """One killed export: before which file operation it was killed, and what was there then."""

    moment: int
    left: str


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def moments(export: Export, output: Path) -> int:
    """How many moments an export has that nobody interrupts; it runs to its end."""
    return _run(export, output, None)


def kill_and_finish(export: Export, folder: Path, expected: dict[str, str], moment: int) -> Kill:
    """Kill an export, check what it leaves, and let the next one finish.

    Args:
        folder: an empty folder to export in.
        expected: `files` of the directory that the export makes if nobody interrupts it.
        moment: before which file operation, from 0.

    Raises:
        AssertionError: something opens that is not the engine, or the next export does not make it.
    """
    output = folder / "engine"
    _run(export, output, moment)
    left = " ".join(sorted(path.name for path in folder.iterdir()))
    for place in folder.iterdir():
        try:
            directory = open_directory(place)
        except EngineError:
            continue
        directory.verify()
        assert expected.items() <= files(place).items(), f"{place.name} opens after moment {moment} and is another"
    complete = output.is_dir()
    try:
        _run(export, output, None)
    except AssertionError:
        # It refuses to replace a complete engine, and nothing else.
        assert complete, f"the export after moment {moment} fails"
    assert files(output) == expected, f"the export after moment {moment} writes other files"
    assert [path.name for path in folder.iterdir()] == ["engine"], f"leftovers after moment {moment}"
    return Kill(moment, left)


def kill_many(export: Export, folder: Path, chosen: Iterable[int], expected: dict[str, str]) -> list[Kill]:
    """`kill_and_finish` at each of some moments, each in a folder of its own."""
    kills = []
    for moment in chosen:
        place = folder / f"moment-{moment}"
        place.mkdir()
        kills.append(kill_and_finish(export, place, expected, moment))
    return kills


def choose(total: int, count: int, seed: int = 0) -> list[int]:
    """Moments to kill at: half of them among the last, where the directory gets its name; the others anywhere."""
    last = list(range(max(total - count // 2, 0), total))
    others = random.Random(seed).sample(range(total - len(last)), min(count - len(last), total - len(last)))
    return sorted({*last, *others})


def _run(export: Export, output: Path, moment: int | None) -> int:
    """Export in a process of its own, which is killed before a moment; returns how many moments there were.

    Raises:
        AssertionError: the process ended in another way.
    """
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(read)
        _child(export, output, moment, write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        assert moment is not None
        return moment
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, said.decode()
    return int(said)


def _child(export: Export, output: Path, moment: int | None, pipe: int) -> None:
    seen = 0
    inside = str(output.parent)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _EVENTS or not isinstance(args[0], str | os.PathLike):
            return
        path = os.fspath(args[0])
        if not str(path).startswith(inside) and (event not in _INSIDE_TREES or Path(path).is_absolute()):
            return
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    try:
        # Threads of the parent do not exist here, and those that wait for them would wait forever.
        torch.set_num_threads(1)
        sys.addaudithook(watch)
        export(output)
        os.write(pipe, str(seen).encode())
        os._exit(0)
    except BaseException:
        os.write(pipe, traceback.format_exc().encode())
        os._exit(1)


def quick_unet_export(monkeypatch: pytest.MonkeyPatch) -> Export:
    """An export of the built-in model's UNet in a second: it traces once for all processes, and the scheduler tables
    are the same every time. Traces are remembered by `helpers.traces`, and kept and read all the same."""
    unet, config = build_tiny().unet, SCHEDULER_CONFIG
    TracedUNet.of(unet)
    tables = build_tables(config)
    monkeypatch.setattr("ebca.export.stages.schedulers.build_tables", lambda *args, **options: tables)
    return lambda output: export_unet(unet, output)


def main(count: int) -> None:
    """Kill that many exports of the built-in model's UNet, and say what each left."""
    from helpers import traces

    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as folder:
        traces.remember(monkeypatch)
        export, place = quick_unet_export(monkeypatch), Path(folder)
        total = moments(export, place / "engine")
        expected = files(place / "engine")
        print(f"{total} moments")
        for kill in kill_many(export, place, choose(total, count), expected):
            print(f"killed before {kill.moment}: {kill.left or 'nothing'}; finished")


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    main(int(sys.argv[1]))
