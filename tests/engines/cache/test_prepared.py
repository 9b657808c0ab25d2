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
from ebca.engines.cache.store import Store
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


def test_a_component_whose_file_is_gone_is_not_current(engine: EngineDirectory) -> None:
    prepared = _prepared(engine)
    prepared.prepare([NAME])
    assert prepared.folder is not None
    store = Store(engine, prepared.backend, prepared.folder, {})
    assert store.is_current(NAME)
    (prepared.folder / f"{NAME}.onnx").unlink()
    assert not store.is_current(NAME)


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


def test_a_damaged_form_of_the_right_size_and_time_is_made_again_when_it_does_not_open(engine: EngineDirectory) -> None:
    prepared = _prepared(engine)
    prepared.prepare([NAME])
    expected = _run(prepared)
    file = prepared.folder / f"{NAME}.onnx"
    before = file.stat()
    file.write_bytes(bytes(before.st_size))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    np.testing.assert_array_equal(_run(_prepared(engine)), expected)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"prepared": [1], "sources": {}}', '{"prepared": {"a": 1}, "sources": 1}']
)
def test_a_stamp_of_any_contents_only_prepares_again(engine: EngineDirectory, text: str) -> None:
    prepared = _prepared(engine)
    prepared.prepare([NAME])
    (prepared.folder / f"{NAME}.json").write_text(text)
    made: list[str] = []
    _prepared(engine).prepare([NAME], lambda done, total, name: made.append(name))
    assert made == [NAME, ""]


def test_what_a_killed_process_left_is_removed_by_the_next_one_that_prepares(engine: EngineDirectory) -> None:
    prepared = _prepared(engine)
    work = prepared.folder / f".{NAME}.abcdefgh"
    work.mkdir(parents=True)
    (work / "half.onnx").write_bytes(b"half")
    old, fresh = (prepared.folder / f"{NAME}.json.{pid}.tmp" for pid in (1, 2))
    for file in (old, fresh):
        file.write_text("{")
    os.utime(old, (1, 1))
    prepared.prepare([NAME])
    assert not work.exists() and not old.exists() and fresh.exists()


def test_a_folder_that_is_deleted_while_in_use_is_made_again(engine: EngineDirectory) -> None:
    prepared = _prepared(engine)
    prepared.prepare([NAME])
    expected = _run(prepared)
    shutil.rmtree(prepared.folder)
    np.testing.assert_array_equal(_run(prepared), expected)


def test_a_relative_cache_folder_stays_where_it_was(
    engine: EngineDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBCA_CACHE_DIR", "relative")
    monkeypatch.chdir(tmp_path)
    prepared = _prepared(engine)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    prepared.prepare([NAME])
    assert prepared.folder.parent == tmp_path / "relative" and prepared.folder.is_dir()
    assert list((tmp_path / "elsewhere").iterdir()) == []
