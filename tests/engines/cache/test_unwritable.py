"""A cache that cannot be written: what it holds is used, the rest is in a temporary folder, with one notice."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.backends.registry import create
from ebca.engines.cache import store
from ebca.engines.cache.prepared import PreparedEngine, prepared_engine
from ebca.engines.cache.storage import evict, stored_engines
from ebca.engines.contract.directory import EngineDirectory, open_directory
from ebca.engines.machine import cache_folder
from ebca.errors import BackendError, EngineError

NAME, OTHER = "text_encoder", "vae_decoder"


@pytest.fixture
def engine(shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineDirectory:
    """The bundled engine, with a cache and a folder for temporary files of its own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "cache"))
    return open_directory(shapes_dir)


class Told(list[str]):
    """The notices."""

    def __call__(self, text: str) -> None:
        self.append(text)


def opened(engine: EngineDirectory, told: Told, backend: str = "onnxruntime") -> PreparedEngine:
    return prepared_engine(engine, create(backend, BackendOptions(threads=1)), told)


def embeddings(prepared: PreparedEngine) -> np.ndarray:
    spec = prepared.directory.manifest.text_encoder
    assert spec is not None
    out = np.empty((1, spec.max_length, spec.hidden_size), np.float32)
    ids = np.zeros((1, spec.max_length), np.int64)
    prepared.open(spec.component).bind({"input_ids": ids}, {"hidden_states": out})()
    return out


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """As on a file system that is mounted read-only, for root too; nothing below `folder` may change."""
    before = files(folder)
    locked, write = store.locked, store._write_atomically

    def refuse(path: Path) -> None:
        if path.is_relative_to(folder):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "locked", lambda path: (refuse(path), locked(path))[1])
        patch.setattr(store, "_write_atomically", lambda path, text: (refuse(path), write(path, text))[1])
        yield
    assert files(folder) == before


def test_a_read_only_cache_is_used_as_far_as_it_goes(engine: EngineDirectory, tmp_path: Path) -> None:
    prepared = opened(engine, Told())
    prepared.prepare([NAME])
    expected = embeddings(prepared)
    told = Told()
    with read_only(tmp_path / "cache"):
        later = opened(engine, told)
        np.testing.assert_array_equal(embeddings(later), expected)
        assert told == [] and list((tmp_path / "tmp").iterdir()) == []
        later.open(OTHER)
        later.open(engine.manifest.unet.segments[0])
        assert len(told) == 1, told
        assert str(later.folder) in told[0] and "Read-only file system" in told[0] and "EBCA_CACHE_DIR" in told[0]
        (folder,) = (tmp_path / "tmp").iterdir()
        assert (folder / f"{OTHER}.onnx").is_file() and not (folder / f"{NAME}.onnx").exists()
        del later
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_read_only_cache_of_an_engine_with_other_times_is_used(
    engine: EngineDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "engine"
    shutil.copytree(engine.path, copied)
    directory = open_directory(copied)
    opened(directory, Told()).prepare([NAME])
    # As an image of a container may have them.
    for file in copied.rglob("*"):
        os.utime(file, (1, 1))
    told = Told()
    with read_only(tmp_path / "cache"):
        later = opened(directory, told)
        verified: list[str] = []
        verify = EngineDirectory.verify
        monkeypatch.setattr(
            EngineDirectory, "verify", lambda self, names: (verified.extend(names), verify(self, names))
        )
        for _ in range(2):
            later.prepare([NAME])
    assert told == [] and len(verified) == len(set(verified)) > 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write to any folder")
def test_a_folder_without_permission(engine: EngineDirectory, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o555)
    told = Told()
    embeddings(opened(engine, told))
    assert len(told) == 1 and "Permission denied" in told[0]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_cache_whose_path_is_a_file(
    engine: EngineDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    expected = embeddings(opened(engine, Told(), backend))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "file"))
    told = Told()
    prepared = opened(engine, told, backend)
    np.testing.assert_array_equal(embeddings(prepared), expected)
    assert len(told) == 1 and str(tmp_path / "file") in told[0]
    assert prepared.folder is not None and evict(prepared.folder, 0) == [] and stored_engines() == []


def _no_home(name: str) -> Path:
    raise RuntimeError("could not determine the home directory")


@pytest.mark.parametrize("answer", [_no_home, lambda name: Path("~/.cache") / name], ids=["raises", "relative"])
def test_a_user_without_a_home_folder(
    engine: EngineDirectory, monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Path]
) -> None:
    monkeypatch.delenv("EBCA_CACHE_DIR")
    monkeypatch.setattr(cache_folder.platformdirs, "user_cache_path", answer)
    with pytest.raises(EngineError, match=r"no home folder; set EBCA_CACHE_DIR"):
        cache_folder.cache_folder()
    told = Told()
    prepared = opened(engine, told)
    assert np.isfinite(embeddings(prepared)).all() and prepared.folder is None
    assert len(told) == 1 and "no home folder" in told[0]
    assert stored_engines() == [] and not Path("~").exists()


def test_too_little_room_is_found_before_anything_is_prepared(
    engine: EngineDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(engine.path)

    def free(path: Path) -> object:
        return usage._replace(free=1000 if Path(path).is_relative_to(tmp_path / "cache") else 10**9)

    monkeypatch.setattr(shutil, "disk_usage", free)
    told = Told()
    prepared = opened(engine, told)
    assert np.isfinite(embeddings(prepared)).all()
    assert len(told) == 1 and "0.00 GB free, and 0.07 GB are needed" in told[0]
    assert prepared.folder is not None and list(prepared.folder.glob("*.onnx*")) == []


def test_a_disk_that_fills_up_half_way_leaves_no_half_file(
    engine: EngineDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = embeddings(opened(engine, Told()))
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "full"))
    told = Told()
    prepared = opened(engine, told)
    segment = engine.manifest.unet.segments[0]
    prepared.prepare([segment])
    assert prepared.folder is not None
    before = sorted(prepared.folder.iterdir())
    prepare = prepared.backend.prepare  # type: ignore[attr-defined]

    def fill(graph: Path, target: Path) -> None:
        prepare(graph, target)
        if target.is_relative_to(tmp_path / "full"):
            target.write_bytes(target.read_bytes()[:100])
            raise BackendError("cannot write external initializers")

    def full(folder: Path) -> None:
        if folder.is_relative_to(tmp_path / "full"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prepared.backend, "prepare", fill)
    monkeypatch.setattr(store, "_check_writable", full)
    np.testing.assert_array_equal(embeddings(prepared), expected)
    assert len(told) == 1 and "No space left on device" in told[0]
    assert sorted(prepared.folder.iterdir()) == before


def test_a_library_that_fails_on_a_disk_with_little_room_has_filled_it(
    engine: EngineDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have removed what it wrote, so that small files can be written again."""
    usage = shutil.disk_usage(engine.path)
    told = Told()
    prepared = opened(engine, told)
    # The component of a gigabyte, at least as it is and perhaps twice.
    monkeypatch.setattr(store.Store, "_room", lambda self, names: 10**9)

    def free(path: Path) -> object:
        return usage._replace(free=15 * 10**8 if Path(path).is_relative_to(tmp_path / "cache") else 10**11)

    prepare = prepared.backend.prepare  # type: ignore[attr-defined]

    def fail(graph: Path, target: Path) -> None:
        if target.is_relative_to(tmp_path / "cache"):
            raise BackendError("Failed to write pre-packed blobs to model proto")
        prepare(graph, target)

    monkeypatch.setattr(shutil, "disk_usage", free)
    monkeypatch.setattr(prepared.backend, "prepare", fail)
    assert np.isfinite(embeddings(prepared)).all()
    assert len(told) == 1 and "1.50 GB free, and 2.07 GB are needed" in told[0]


def test_weights_of_two_bytes_take_twice_the_room(engine: EngineDirectory) -> None:
    assert engine.manifest.precision == "fp16"
    full = EngineDirectory(engine.path, replace(engine.manifest, precision="fp32"))
    rooms = [store.Store(e, opened(e, Told()).backend, Path("unused"), {})._room([NAME]) for e in (full, engine)]
    assert rooms[1] == pytest.approx(2 * rooms[0], rel=1e-6)
    assert rooms[0] > sum(engine.manifest.files[f].size for f in engine.manifest.components[NAME].files("onnxruntime"))


def test_components_that_fill_half_of_the_memory_are_prepared_alone(
    engine: EngineDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = opened(engine, Told())
    large = set(engine.manifest.unet.segments[:2])
    monkeypatch.setattr(store, "available_bytes", lambda: 1000)
    monkeypatch.setattr(store.Store, "_most_room", lambda self, name: 501 if name in large else 499)
    running: set[str] = set()
    together: list[set[str]] = []
    prepare = prepared.backend.prepare  # type: ignore[attr-defined]

    def watched(graph: Path, target: Path) -> None:
        running.add(target.stem)
        together.append(set(running))
        prepare(graph, target)
        running.discard(target.stem)

    monkeypatch.setattr(prepared.backend, "prepare", watched)
    prepared.prepare(engine.manifest.unet.segments)
    assert all(len(names) == 1 for names in together if names & large)
    assert {name for names in together for name in names} == set(engine.manifest.unet.segments)


def test_a_backend_that_fails_on_a_disk_with_room_is_no_matter_of_the_cache(
    engine: EngineDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    prepared = opened(engine, told)

    def fail(graph: Path, target: Path) -> None:
        raise BackendError("unknown operator")

    monkeypatch.setattr(prepared.backend, "prepare", fail)
    with pytest.raises(BackendError, match="unknown operator"):
        prepared.prepare([NAME])
    assert told == []


def test_no_folder_at_all_is_one_line(engine: EngineDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(
        EngineError, match=r"file/onnxruntime-\w+' .*, nor in a temporary folder .*; set EBCA_CACHE_DIR"
    ):
        opened(engine, Told()).prepare([NAME])
