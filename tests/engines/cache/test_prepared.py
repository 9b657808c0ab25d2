"""Prepared components: made once, verified, rebuilt if damaged, evicted beyond a bound."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.backends.registry import create
from ebca.engines.cache.prepared import PreparedEngine, prepared_engine
from ebca.engines.cache.storage import evict
from ebca.engines.contract.directory import EngineDirectory, open_directory
from ebca.engines.machine.cache_folder import cache_folder
from ebca.errors import EngineError, ParameterError

NAME = "text_encoder"


@pytest.fixture
def engine(tiny_engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineDirectory:
    """A copy of the tiny engine, with its own cache."""
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "cache"))
    shutil.copytree(tiny_engine_dir, tmp_path / "engine")
    return open_directory(tmp_path / "engine")


def _prepared(engine: EngineDirectory) -> PreparedEngine:
    return prepared_engine(engine, create("onnxruntime", BackendOptions(threads=1)))


def _run(prepared: PreparedEngine) -> np.ndarray:
    out = np.empty((1, 77, 32), np.float32)
    prepared.open(NAME).bind({"input_ids": np.zeros((1, 77), np.int64)}, {"hidden_states": out})()
    return out


def test_components_are_prepared_once(engine: EngineDirectory) -> None:
    made: list[str] = []
    prepared = _prepared(engine)
    prepared.prepare([NAME], lambda done, total, name: made.append(name))
    assert made == [NAME, ""]
    made.clear()
    _prepared(engine).prepare([NAME], lambda done, total, name: made.append(name))
    assert made == []


def test_a_damaged_prepared_form_is_made_again(engine: EngineDirectory) -> None:
    prepared = _prepared(engine)
    prepared.prepare([NAME])
    expected = _run(prepared)
    file = prepared.folder / f"{NAME}.onnx"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    file.write_bytes(damaged)
    os.utime(file, ns=(time.time_ns(), time.time_ns() + 10**9))
    np.testing.assert_array_equal(_run(_prepared(engine)), expected)
    file.unlink()
    np.testing.assert_array_equal(_run(_prepared(engine)), expected)


def test_a_damaged_source_is_found_before_and_after_preparation(engine: EngineDirectory) -> None:
    source = engine.file("text_encoder.onnx.data")
    good = source.read_bytes()
    damaged = bytearray(good)
    damaged[100] ^= 1
    source.write_bytes(damaged)
    with pytest.raises(EngineError, match=r"text_encoder\.onnx\.data' is corrupted"):
        _prepared(engine).prepare([NAME])
    source.write_bytes(good)
    _prepared(engine).prepare([NAME])
    source.write_bytes(damaged)
    with pytest.raises(EngineError, match="is corrupted"):
        _prepared(engine).prepare([NAME])
    # The same contents with another modification time are accepted.
    source.write_bytes(good)
    _prepared(engine).prepare([NAME])


def test_a_touched_source_is_not_prepared_again(engine: EngineDirectory) -> None:
    _prepared(engine).prepare([NAME])
    os.utime(engine.file("text_encoder.onnx.data"))
    made: list[str] = []
    _prepared(engine).prepare([NAME], lambda done, total, name: made.append(name))
    assert made == []


def test_missing_and_truncated_files_are_found(engine: EngineDirectory) -> None:
    file = engine.file("unet/segment_03.onnx.data")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"segment_03\.onnx\.data' has \d+ bytes instead of \d+"):
        open_directory(engine.path)
    file.unlink()
    with pytest.raises(EngineError, match=r"segment_03\.onnx\.data' is missing"):
        open_directory(engine.path)


def test_the_full_directory_is_verified(engine: EngineDirectory) -> None:
    read: list[str] = []
    engine.verify(progress=read.append)
    assert sorted(read) == sorted(engine.manifest.files)


def test_eviction_keeps_the_engine_in_use_and_foreign_folders(
    engine: EngineDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = _prepared(engine)
    keep.prepare([NAME])
    root = cache_folder()
    old = shutil.copytree(keep.folder, root / "onnxruntime-old")
    foreign = root / "holiday-photos"
    foreign.mkdir()
    (foreign / "a.jpg").write_bytes(b"x" * 1000)
    for folder in (old, foreign, keep.folder):
        os.utime(folder, (1, 1))
    assert evict(keep.folder, limit_bytes=1e12) == []
    assert evict(keep.folder, limit_bytes=0) == [old]
    assert keep.folder.is_dir() and foreign.is_dir() and not old.exists()
    monkeypatch.setenv("EBCA_CACHE_LIMIT_GB", "plenty")
    with pytest.raises(ParameterError, match="EBCA_CACHE_LIMIT_GB is 'plenty'"):
        evict(keep.folder)


def test_a_cache_that_cannot_be_written_is_an_error(
    engine: EngineDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(EngineError, match="set EBCA_CACHE_DIR"):
        _prepared(engine).prepare([NAME])


def test_a_full_disk_is_an_error(engine: EngineDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(engine.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(EngineError, match="free some room or set EBCA_CACHE_DIR"):
        _prepared(engine).prepare([NAME])
