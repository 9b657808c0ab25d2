"""The cache of prepared engines, as the C++ library keeps it: what does not open is made again, what is no file is
replaced, and a relative folder stays where it was when the engine was opened."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import in_the_way

from ebca.runtime import native

NAME = "text_encoder"


class Opened:
    """Opens the bundled engine with a cache, and makes an image."""

    def __init__(self, library: native.Library, engine: Path) -> None:
        self._library, self._engine = library, engine
        self.prepared: list[str] = []
        self.told: list[str] = []

    def image(self, cache: Path, **given: Any) -> np.ndarray:
        self.prepared, self.told = [], []
        with (
            self._library.open(
                self._engine,
                cache=cache,
                threads=1,
                on_prepare=lambda done, total, name: self.prepared.append(name),
                log=lambda level, text: self.told.append(text),
                **given,
            ) as engine,
            engine.session() as session,
        ):
            return session.generate("a red circle", steps=1, seed=1).pixels


@pytest.fixture
def opened(library: native.Library, shapes_dir: Path) -> Opened:
    return Opened(library, shapes_dir)


@pytest.fixture(scope="module")
def good(library: native.Library, shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache where the engine is prepared."""
    cache = tmp_path_factory.mktemp("good")
    Opened(library, shapes_dir).image(cache)
    return cache


@pytest.fixture
def cache(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "cache"))


def folder_of(cache: Path) -> Path:
    (folder,) = cache.iterdir()
    return folder


def test_a_stamped_form_that_does_not_open_is_made_again(opened: Opened, cache: Path, good: Path) -> None:
    """Its digest is right: somebody stamped what cannot be opened."""
    expected = opened.image(good)
    assert opened.prepared == []
    file, stamp = (folder_of(cache) / f"{NAME}.{kind}" for kind in ("onnx", "json"))
    for bad in (b"no graph", b""):
        file.write_bytes(bad)
        record = json.loads(stamp.read_text())
        record["prepared"][file.name] = {
            "size": len(bad),
            "mtime_ns": file.stat().st_mtime_ns,
            "sha256": hashlib.sha256(bad).hexdigest(),
        }
        stamp.write_text(json.dumps(record))
        np.testing.assert_array_equal(opened.image(cache), expected)
        assert file.stat().st_size > 8 and opened.told == []


@pytest.mark.parametrize("kind", in_the_way.KINDS)
def test_what_is_in_the_place_of_a_file_is_replaced(opened: Opened, cache: Path, good: Path, kind: str) -> None:
    expected = opened.image(good)
    folder = folder_of(cache)
    # Lock and marker are looked at only if something has to be made.
    for names in ((f"{NAME}.onnx", ".lock", "engine.json"), (f"{NAME}.onnx.data",), (f"{NAME}.json",)):
        for name in names:
            in_the_way.put(kind, folder / name)
        np.testing.assert_array_equal(opened.image(cache), expected, err_msg=str(names))
        assert opened.told == [] and opened.prepared == [NAME, ""], names
        for name in names:
            assert (folder / name).is_file() and not (folder / name).is_symlink(), name


def test_relative_folders_stay_where_they_were(
    library: native.Library, shapes_dir: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Components are opened long after the engine: that of the VAE only for an image."""
    shutil.copytree(shapes_dir, tmp_path / "engine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for named in ("parameter", "variable"):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("EBCA_CACHE_DIR", "cache")
        monkeypatch.setenv("EBCA_ORT_LIB", os.path.relpath(str(library.onnxruntime)))
        given: dict[str, Any] = {"cache": "cache"} if named == "parameter" else {"cache": None}
        engine = library.open("engine", onnxruntime=os.path.relpath(str(library.onnxruntime)), **given)
        monkeypatch.chdir(elsewhere)
        session = engine.session()
        session.generate("a red circle", steps=1, image=np.zeros((64, 64, 3), np.uint8), strength=1.0)
        # It has to be made: the folder is found, too.
        (folder_of(cache) / f"{NAME}.json").unlink()
        session.generate("a blue square", steps=1)
        assert (folder_of(cache) / f"{NAME}.json").is_file()
        session.close()
        engine.close()
        assert list(elsewhere.iterdir()) == []


def test_a_relative_folder_for_temporary_files_stays_where_it_was(
    library: native.Library, shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", "tmp")
    with library.open(shapes_dir, cache=tmp_path / "file") as engine, engine.session() as session:
        monkeypatch.chdir(tmp_path / "elsewhere")
        session.generate("a red circle", steps=1)
        assert list((tmp_path / "elsewhere").iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []
