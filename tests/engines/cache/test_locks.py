"""Locks between processes and threads, and the temporary folders that they guard."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ebca.engines.cache.locks import locked, try_lock
from ebca.engines.cache.temporary import TemporaryFolder

_HOLD = "import sys; from ebca.engines.cache.locks import try_lock; print(try_lock(sys.argv[1])); sys.stdin.read()"


def test_a_lock_has_one_holder_until_it_is_closed(tmp_path: Path) -> None:
    held = try_lock(tmp_path / "lock")
    assert held is not None and try_lock(tmp_path / "lock") is None
    os.close(held)
    with locked(tmp_path / "lock"):
        assert try_lock(tmp_path / "lock") is None


def test_waiting_has_an_end(tmp_path: Path) -> None:
    waiting = locked(tmp_path / "lock", wait_seconds=0.1)
    with locked(tmp_path / "lock"), pytest.raises(TimeoutError, match="another process"), waiting:
        pass


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    words = [sys.executable, "-c", _HOLD, str(lock)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert try_lock(lock) is None
        process.kill()
        process.wait()
    descriptor = try_lock(lock)
    assert descriptor is not None
    os.close(descriptor)


def test_a_temporary_folder_ends_with_its_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = TemporaryFolder()
    path = folder.path
    assert path.parent == tmp_path and path.stat().st_mode & 0o777 == 0o700
    del folder
    assert not path.exists()


def test_only_abandoned_folders_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    used = TemporaryFolder()
    abandoned, young, other = (tmp_path / name for name in ("ebca-prepared-dead", "ebca-prepared-new", "photos"))
    for folder in (abandoned, young, other):
        folder.mkdir()
    (abandoned / "a.onnx").write_bytes(b"x")
    for folder in (used.path, abandoned, other):
        os.utime(folder, (1, 1))
    later = TemporaryFolder()
    assert {path.name for path in tmp_path.iterdir()} == {used.path.name, later.path.name, young.name, other.name}
