"""The files of an engine directory: regular files or links to them, with the exported size and contents."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import manifests
from helpers.links import linked_copy

import ebca
from ebca.engines.backends import registry
from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.cache.prepared import prepared_engine
from ebca.engines.contract.directory import open_directory
from ebca.errors import EngineError
from ebca.runtime.diagnostics.directory import check_engine

KINDS = [
    *(("tokenizer.json", kind) for kind in ("link to itself", "directory", "link to a directory", "device")),
    *(
        (file, kind)
        for file in ("unet/segment_03.onnx.data", "schedulers/pndm.f64")
        for kind in ("pipe", "dangling link")
    ),
    *((file, "other contents") for file in ("unet/segment_03.onnx.data", "schedulers/pndm.f64", "tokenizer.json")),
]


def replace(path: Path, kind: str) -> str:
    """Put something else in place of a file; returns what is said of it."""
    contents = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "other contents":
        path.write_bytes(bytes([contents[0] ^ 1]) + contents[1:])
        return "is corrupted: its contents are not what was exported"
    else:
        target = {"device": "/dev/zero", "dangling link": "nowhere", "link to a directory": "/"}.get(kind, path.name)
        path.symlink_to(target)
    if kind in ("dangling link", "link to itself"):
        return "is a link to a file that is not there; copy the whole engine directory or export it again"
    return f"is a {kind.removeprefix('link to a ')} instead of a file"


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_what_is_no_file_is_refused(shapes_dir: Path, tmp_path: Path, name: str, kind: str) -> None:
    """Nothing waits for a pipe, or reads a device to its end."""
    folder = linked_copy(shapes_dir, tmp_path)
    expected = replace(folder / name, kind)
    with pytest.raises(EngineError, match=f"{name}' {expected}"):
        open_directory(folder).verify()
    with pytest.raises(EngineError, match=f"{name}' {expected}"):
        open_directory(folder).read(name)
    # The doctor says the same.
    problems = [finding.text for finding in check_engine(folder) if finding.level == "problem"]
    assert len(problems) == 1 and f"{name}' {expected.partition(';')[0]}" in problems[0]


def test_a_missing_file_is_named(shapes_dir: Path, tmp_path: Path) -> None:
    folder = linked_copy(shapes_dir, tmp_path)
    (folder / "vae_decoder.onnx").unlink()
    with pytest.raises(EngineError, match=r"vae_decoder.onnx' is missing; copy the whole engine directory"):
        open_directory(folder)


def test_a_directory_of_links_is_an_engine(shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As model caches have them: everything in a store, under other names; the directory itself is a link too."""
    linked = tmp_path / "link"
    linked.symlink_to(linked_copy(shapes_dir, tmp_path))
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "cache"))
    made = []
    for folder in (linked, shapes_dir):
        with ebca.load(folder, "cpu", "onnxruntime") as engine, engine.session() as session:
            made.append(np.asarray(session.generate("a red circle", steps=2, seed=1).images[0]))
    assert np.array_equal(*made)
    # One cache serves both, and nothing is left of what was linked for the library.
    (prepared,) = (tmp_path / "cache").iterdir()
    assert not [path for path in prepared.iterdir() if path.is_dir()]
    assert not [finding for finding in check_engine(linked) if finding.level == "problem"]


def test_openvino_reads_linked_weights(shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses weights that are outside the folder of the graph."""
    if "openvino" not in registry.available():
        pytest.skip("openvino is not installed")
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "cache"))
    directory = open_directory(linked_copy(shapes_dir, tmp_path))
    prepared_engine(directory, registry.create("openvino", BackendOptions())).open("segment_00")


def test_copies_where_links_cannot_be_made(shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "cache"))
    ebca.load(linked_copy(shapes_dir, tmp_path), "cpu", "onnxruntime").close()


def test_a_component_made_of_other_files_is_made_again(
    shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest decides which files a component has: what was prepared from others is not it."""
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "engine"
    shutil.copytree(shapes_dir, folder)
    made: list[str] = []

    def prepared() -> list[str]:
        made.clear()
        ebca.load(folder, "cpu", "onnxruntime", on_prepare=lambda done, total, name: made.append(name)).close()
        return [name for name in made if name]

    # Two are prepared at once, and progress names one of them.
    assert prepared() and prepared() == []
    manifests.edit(folder, lambda data: data["components"]["segment_03"].update(lowered={}))
    assert prepared() == ["segment_03"] and prepared() == []


def test_names_that_are_too_long_are_unknown_engines() -> None:
    with pytest.raises(EngineError, match="does not exist"):
        open_directory("x" * 5000)
