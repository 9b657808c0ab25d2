"""An engine that the library reads through a callback: the same bits as from a folder, copied into the cache once,
never anything that the manifest does not vouch for, and not evicted while it is in use."""

import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import building, in_the_way
from helpers.manifests import stamped

from ebca.engines.cache import storage
from ebca.errors import EngineError, ParameterError
from ebca.runtime import native

ROOT = Path(__file__).parents[2]
MANIFEST = "manifest.json"
WEIGHTS = "text_encoder.onnx.data"
PIECE = 1 << 20

Change = Callable[[dict[str, bytes]], None]


class Archive:
    """The files of an engine directory in memory."""

    def __init__(self, folder: Path) -> None:
        self.files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.calls: list[tuple[str, int, int]] = []
        self.threads: set[int] = set()

    def __call__(self, name: str, offset: int, size: int) -> bytes | None:
        self.calls.append((name, offset, size))
        self.threads.add(threading.get_ident())
        found = self.files.get(name)
        return None if found is None else found[offset : offset + size]

    @property
    def names(self) -> set[str]:
        return {name for name, _, _ in self.calls}

    def rename(self, old: str, new: str) -> None:
        """In the manifest and in the archive, with a digest that is right."""
        manifest = self.files[MANIFEST].replace(json.dumps(old).encode(), json.dumps(new).encode())
        assert manifest != self.files[MANIFEST]
        self.files[MANIFEST] = stamped(json.loads(manifest))
        self.files[new] = self.files.pop(old)


@pytest.fixture
def archive(shapes_dir: Path) -> Archive:
    return Archive(shapes_dir)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def made(library: native.Library, shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache where the engine is unpacked and prepared."""
    cache = tmp_path_factory.mktemp("made")
    _opened(library, Archive(shapes_dir), cache)
    return cache


@pytest.fixture
def filled(made: Path, cache: Path) -> Path:
    return Path(shutil.copytree(made, cache))


@pytest.fixture(scope="module")
def expected(shapes: native.Engine) -> np.ndarray:
    return _image(shapes)


def _image(engine: native.Engine) -> np.ndarray:
    with engine.session() as session:
        return session.generate("a red circle", steps=1, seed=1).pixels


def _opened(library: native.Library, read: Any, cache: Path, **given: Any) -> np.ndarray:
    with library.open(read=read, cache=cache, threads=1, **given) as engine:
        return _image(engine)


def _folder(cache: Path) -> Path:
    (folder,) = cache.glob("unpacked-*")
    return folder


def _lock_is_free(file: Path) -> bool:
    with file.open("r+b") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_the_bits_are_those_of_the_folder_and_files_are_copied_once(
    library: native.Library, archive: Archive, cache: Path, shapes_dir: Path, expected: np.ndarray
) -> None:
    told: list[tuple[int, str]] = []
    with library.open(read=archive, cache=cache, threads=1, log=lambda *line: told.append(line)) as engine:
        before = len(archive.calls)
        np.testing.assert_array_equal(_image(engine), expected)
        assert len(archive.calls) == before, "it was called after the engine was opened"
    assert archive.names == set(json.loads(archive.files[MANIFEST])["files"]) | {MANIFEST}
    assert archive.threads == {threading.get_ident()}
    assert max(size for _, _, size in archive.calls) <= PIECE
    _check_order(archive)
    assert any(offset == PIECE for _, offset, _ in archive.calls), "no file needs a second piece"
    folder = _folder(cache)
    copied = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert copied == archive.names | {"engine.json", ".lock", ".use-0"}
    assert all((folder / name).read_bytes() == archive.files[name] for name in archive.names)
    ((level, line),) = told
    assert level == 1 and f"files of the engine to '{folder}'" in line
    # The prepared form is that of the folder.
    prepared: list[str] = []
    library.open(shapes_dir, cache=cache, threads=1, on_prepare=lambda *one: prepared.append(one[2])).close()
    assert prepared == []
    archive.calls.clear()
    np.testing.assert_array_equal(_opened(library, archive, cache, log=lambda *line: told.append(line)), expected)
    assert archive.names == {MANIFEST} and len(told) == 1


def _check_order(archive: Archive) -> None:
    """Each file from its beginning to its end, one after the other: as a stream can be read."""
    at, current = 0, ""
    done: set[str] = set()
    for name, offset, size in archive.calls:
        if name != current:
            assert name not in done
            done.add(name)
            at, current = 0, name
        assert offset == at, (name, offset)
        at += len(archive.files[name][offset : offset + size])


def test_the_host_of_the_documentation(
    library_file: Path, onnxruntime_file: Path, archive: Archive, tmp_path: Path, expected: np.ndarray
) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no cc to make a host with")
    guide = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    (code,) = [found for found in re.findall(r"```c\n(.*?)```", guide, re.DOTALL) if "read_member(const" in found]
    (tmp_path / "read_member.h").write_text(code)
    blob, lines = b"before", []
    for name, contents in archive.files.items():
        lines.append(f"{name} {len(blob)} {len(contents)}\n")
        blob += contents
    (tmp_path / "blob").write_bytes(blob)
    (tmp_path / "index").write_text("".join(lines))
    include, host = ROOT / "runtime" / "cpp" / "include", ROOT / "tests" / "cpp" / "hosts" / "archive.c"
    words = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{include}", f"-I{tmp_path}", host, library_file]
    building.run(*words, f"-Wl,-rpath,{library_file.parent}", "-o", tmp_path / "host")
    said = building.run(tmp_path / "host", *(tmp_path / name for name in ("blob", "index")), onnxruntime_file, tmp_path)
    assert int(said) == int(expected.sum(dtype=np.int64))


def test_a_callback_may_give_less_than_was_asked(
    library: native.Library, archive: Archive, cache: Path, expected: np.ndarray
) -> None:
    def read(name: str, offset: int, size: int) -> bytes | None:
        return archive(name, offset, min(size, 50_000))

    np.testing.assert_array_equal(_opened(library, read, cache), expected)


def _flip(files: dict[str, bytes]) -> None:
    files[WEIGHTS] = files[WEIGHTS][:-1] + bytes([files[WEIGHTS][-1] ^ 1])


def _cut(files: dict[str, bytes]) -> None:
    files[WEIGHTS] = files[WEIGHTS][:-1]


def _lengthen(files: dict[str, bytes]) -> None:
    files[WEIGHTS] += b"\0"


def _drop(files: dict[str, bytes]) -> None:
    del files[WEIGHTS]


def _drop_manifest(files: dict[str, bytes]) -> None:
    del files[MANIFEST]


def _damage_manifest(files: dict[str, bytes]) -> None:
    files[MANIFEST] = files[MANIFEST].replace(b"shapes", b"shaped", 1)


def _empty_manifest(files: dict[str, bytes]) -> None:
    files[MANIFEST] = b""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_flip, rf"'{WEIGHTS}' of the callback read is corrupted"),
        (_cut, rf"'{WEIGHTS}' of the callback read has \d+ bytes instead of \d+: truncated or changed"),
        (_lengthen, rf"'{WEIGHTS}' of the callback read has \d+ or more bytes instead of \d+"),
        (_drop, rf"the callback read has no '{WEIGHTS}', or cannot read it at byte 0; give it all files"),
        (_drop_manifest, rf"the callback read has no '{MANIFEST}'"),
        (_damage_manifest, rf"'{MANIFEST}' of the callback read was changed or damaged"),
        (_empty_manifest, rf"'{MANIFEST}' of the callback read cannot be read"),
    ],
)
def test_what_the_manifest_does_not_vouch_for_is_refused_and_leaves_nothing(
    library: native.Library, archive: Archive, cache: Path, change: Change, message: str
) -> None:
    change(archive.files)
    with pytest.raises(EngineError, match=message) as caught:
        library.open(read=archive, cache=cache)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../out.data", "outside the engine directory"),
        ("/tmp/out.data", "outside the engine directory"),
        ("a/../../out.data", "outside the engine directory"),
        ("engine.json", "which no file of an engine directory is called"),
        (".lock", "which no file of an engine directory is called"),
        (".use-0", "which no file of an engine directory is called"),
    ],
)
def test_names_that_lead_out_or_are_the_caches_own(
    library: native.Library, archive: Archive, cache: Path, name: str, message: str
) -> None:
    archive.rename(WEIGHTS, name)
    with pytest.raises(EngineError, match=message):
        library.open(read=archive, cache=cache)
    assert archive.names == {MANIFEST} and not cache.exists()


def test_path_or_read(library: native.Library, archive: Archive, shapes_dir: Path, cache: Path) -> None:
    with pytest.raises(ParameterError, match="both path and read are given; give one of them"):
        library.open(shapes_dir, read=archive, cache=cache)
    with pytest.raises(ParameterError, match="path is missing; name an engine directory, or set read"):
        library.open(cache=cache)
    assert archive.calls == []


def test_numbers_that_no_read_returns(library: native.Library, archive: Archive, cache: Path) -> None:
    def opened(returned: int | Callable[..., int]) -> tuple[int, str]:
        params = library.init("engine_params")
        params.cache_dir = os.fsencode(cache)
        params.read = native.structures.ReadCallback(returned if callable(returned) else lambda *_: returned)
        status = library.lib.ebca_engine_open(byref(params), byref(c_void_p()))
        return status, library.last_error()

    status, text = opened(PIECE + 1)
    assert status == 1
    assert f"the callback read returned {PIECE + 1} for {PIECE} bytes of '{MANIFEST}'; return how many" in text
    assert opened(2**63 - 1)[0] == 1
    for number in (-1, -2, -(2**63)):
        status, text = opened(number)
        assert status == 2 and f"has no '{MANIFEST}', or cannot read it at byte 0" in text
    # It does not end.
    status, text = opened(lambda name, offset, buffer, size, data: size)
    assert status == 2 and "is larger than any that ebca writes" in text
    assert not cache.exists()
    with pytest.raises(ParameterError, match=rf"returned {PIECE + 5} for {PIECE} bytes"):
        library.open(read=lambda name, offset, size: bytes(size + 5), cache=cache)


@pytest.mark.parametrize("failing", [MANIFEST, WEIGHTS])
def test_what_read_raises_is_raised(library: native.Library, archive: Archive, cache: Path, failing: str) -> None:
    def read(name: str, offset: int, size: int) -> bytes | None:
        if name == failing:
            raise KeyError("no such member")
        return archive(name, offset, size)

    with pytest.raises(KeyError, match="no such member"):
        library.open(read=read, cache=cache)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_two_threads_at_once(library: native.Library, shapes_dir: Path, cache: Path, expected: np.ndarray) -> None:
    archives = [Archive(shapes_dir) for _ in range(3)]
    begin = threading.Barrier(len(archives))

    def make(archive: Archive) -> np.ndarray:
        begin.wait()
        return _opened(library, archive, cache)

    with ThreadPoolExecutor(len(archives)) as pool:
        for image in pool.map(make, archives):
            np.testing.assert_array_equal(image, expected)
    assert sorted(archive.names == {MANIFEST} for archive in archives) == [False, True, True]


def test_a_copy_that_was_killed_is_continued(
    library: native.Library, archive: Archive, filled: Path, expected: np.ndarray
) -> None:
    """A whole file stays, whatever its name says; one that was cut off, or is none, is copied again."""
    folder = _folder(filled)
    (folder / MANIFEST).unlink()
    (folder / ".copying").write_bytes(b"half of")
    # Of the right size, but not what was exported: a disk that lost power.
    (folder / WEIGHTS).write_bytes(bytes(len(archive.files[WEIGHTS])))
    os.utime(folder / WEIGHTS, (-5, -5))
    (folder / "tokenizer.json").unlink()
    archive.calls.clear()
    np.testing.assert_array_equal(_opened(library, archive, filled), expected)
    assert archive.names == {MANIFEST, WEIGHTS, "tokenizer.json"}
    assert (folder / WEIGHTS).read_bytes() == archive.files[WEIGHTS] and not (folder / ".copying").exists()


def test_a_damaged_copy_is_mended(
    library: native.Library, archive: Archive, filled: Path, expected: np.ndarray
) -> None:
    file = _folder(filled) / WEIGHTS
    for damage in (lambda: file.write_bytes(bytes(file.stat().st_size)), lambda: file.write_bytes(b""), file.unlink):
        damage()
        archive.calls.clear()
        np.testing.assert_array_equal(_opened(library, archive, filled), expected)
        assert archive.names == {MANIFEST, WEIGHTS} and file.read_bytes() == archive.files[WEIGHTS]
    # A file that is only younger is read once, not copied.
    os.utime(file)
    manifest = _folder(filled) / MANIFEST
    os.utime(manifest, (0, 0))
    archive.calls.clear()
    for _ in range(2):
        np.testing.assert_array_equal(_opened(library, archive, filled), expected)
        assert archive.names == {MANIFEST} and manifest.stat().st_mtime_ns >= file.stat().st_mtime_ns


@pytest.mark.parametrize("turn", [0, 2])
def test_what_is_in_the_place_of_a_file_is_replaced(
    library: native.Library, archive: Archive, filled: Path, turn: int, expected: np.ndarray
) -> None:
    folder = _folder(filled)
    kinds = (*in_the_way.KINDS[turn:], *in_the_way.KINDS[:turn])
    for name, kind in zip((WEIGHTS, MANIFEST, "engine.json", ".copying", ".lock"), kinds, strict=True):
        in_the_way.put(kind, folder / name)
    # The same for a folder.
    (folder / "schedulers").rename(folder / "elsewhere")
    (folder / "schedulers").write_text("")
    np.testing.assert_array_equal(_opened(library, archive, filled), expected)
    assert all((folder / name).read_bytes() == contents for name, contents in archive.files.items())


def test_without_a_writable_cache_the_copy_is_temporary(
    library: native.Library,
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: np.ndarray,
) -> None:
    (tmp_path / "file").write_text("")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    told: list[str] = []

    def log(level: int, text: str) -> None:
        if level == 0:
            told.append(text)

    with library.open(read=archive, cache=tmp_path / "file", log=log) as engine:
        np.testing.assert_array_equal(_image(engine), expected)
        assert len(list(temporary.glob(f"*/engine/{MANIFEST}"))) == 1
    assert list(temporary.iterdir()) == []
    (text,) = told
    assert f"the files of the engine cannot be kept in '{tmp_path / 'file'}/unpacked-" in text
    assert text.endswith("set EBCA_CACHE_DIR to a writable folder with room")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file"))
    with pytest.raises(EngineError, match=r"cannot be kept in .*, nor in a temporary folder"):
        library.open(read=archive, cache=tmp_path / "file")
    # What the host gives is wrong, wherever it is copied to.
    monkeypatch.setenv("TMPDIR", str(temporary))
    _flip(archive.files)
    with pytest.raises(EngineError, match="is corrupted"):
        library.open(read=archive, cache=tmp_path / "file")
    assert list(temporary.iterdir()) == []


def test_a_copy_in_use_is_not_evicted(
    library: native.Library,
    archive: Archive,
    filled: Path,
    shapes_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: np.ndarray,
) -> None:
    monkeypatch.setenv("EBCA_CACHE_LIMIT_GB", "0")
    engine = library.open(read=archive, cache=filled, threads=1)
    again = library.open(read=archive, cache=filled, threads=1)
    folder = _folder(filled)
    assert [_lock_is_free(folder / f".use-{index}") for index in (0, 1)] == [False, False]
    engine.close()
    assert [_lock_is_free(folder / f".use-{index}") for index in (0, 1)] == [True, False]
    keep = next(path for path in filled.iterdir() if path != folder)

    def evict_in_c() -> None:
        library.open(shapes_dir, cache=filled, threads=1).close()

    def evict_in_python() -> None:
        storage.evict(keep, 0)

    for evict in (evict_in_c, evict_in_python):
        os.utime(folder, (0, 0))
        evict()
        assert (folder / MANIFEST).is_file()
    np.testing.assert_array_equal(_image(again), expected)
    again.close()
    # An open says that it was used just now.
    library.open(read=archive, cache=filled, threads=1).close()
    assert time.time() - folder.stat().st_mtime < 60
    for evict in (evict_in_c, evict_in_python):
        assert (folder / MANIFEST).is_file()
        os.utime(folder, (0, 0))
        evict()
        assert not folder.exists()
        np.testing.assert_array_equal(_opened(library, archive, filled), expected)


def test_what_somebody_writes_is_not_evicted(
    library: native.Library, archive: Archive, cache: Path, shapes_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying may take longer than the minute's grace."""
    monkeypatch.setenv("EBCA_CACHE_LIMIT_GB", "0")
    library.open(shapes_dir, cache=cache, threads=1).close()
    seen: list[bool] = []

    def read(name: str, offset: int, size: int) -> bytes | None:
        if name == WEIGHTS and offset == 0:
            os.utime(_folder(cache), (0, 0))
            library.open(shapes_dir, cache=cache, threads=1).close()
            storage.evict(next(cache.glob("onnxruntime-*")), 0)
            seen.append(_folder(cache).is_dir())
        return archive(name, offset, size)

    library.open(read=read, cache=cache, threads=1).close()
    assert seen == [True]


def test_a_directory_in_the_cache_is_not_evicted_by_its_own_engine(
    library: native.Library, archive: Archive, cache: Path, monkeypatch: pytest.MonkeyPatch, expected: np.ndarray
) -> None:
    """Python's derived directories lie there."""
    monkeypatch.setenv("EBCA_CACHE_LIMIT_GB", "0")
    derived = cache / "derived-1"
    for name, contents in archive.files.items():
        (derived / name).parent.mkdir(parents=True, exist_ok=True)
        (derived / name).write_bytes(contents)
    (derived / "engine.json").write_text("{}")
    os.utime(derived, (0, 0))
    link = cache.parent / "link"
    link.symlink_to(cache)
    with library.open(link / derived.name, cache=cache, threads=1) as engine:
        np.testing.assert_array_equal(_image(engine), expected)
