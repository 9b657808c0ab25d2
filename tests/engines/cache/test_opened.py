"""A stamp promises that a prepared form opens; what is in the place of a file of the cache and is none is replaced."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import in_the_way

from ebca.engines.backends import onnxruntime as backend_module
from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.backends.registry import create
from ebca.engines.cache.prepared import PreparedEngine, prepared_engine
from ebca.engines.contract.directory import EngineDirectory, open_directory
from ebca.errors import BackendError, EngineError

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes and alarms")
NAME = "text_encoder"


def _late(*_: object) -> None:
    raise AssertionError("this waits for a pipe that nobody writes to")


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def engine(shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineDirectory:
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "cache"))
    return open_directory(shapes_dir)


def opened(engine: EngineDirectory) -> PreparedEngine:
    def tell(text: str) -> None:
        raise AssertionError(text)

    return prepared_engine(engine, create("onnxruntime", BackendOptions(threads=1)), tell)


def embeddings(prepared: PreparedEngine) -> np.ndarray:
    spec = prepared.directory.manifest.text_encoder
    assert spec is not None
    out = np.empty((1, spec.max_length, spec.hidden_size), np.float32)
    ids = np.zeros((1, spec.max_length), np.int64)
    prepared.open(NAME).bind({"input_ids": ids}, {"hidden_states": out})()
    return out


def test_a_stamped_form_that_does_not_open_is_made_again(engine: EngineDirectory) -> None:
    """Its digest is right: somebody stamped what cannot be opened."""
    prepared = opened(engine)
    expected = embeddings(prepared)
    assert prepared.folder is not None
    file, stamp = (prepared.folder / f"{NAME}.{kind}" for kind in ("onnx", "json"))
    file.write_bytes(b"no graph")
    record = json.loads(stamp.read_text())
    record["prepared"][file.name] = {
        "size": 8,
        "mtime_ns": file.stat().st_mtime_ns,
        "sha256": hashlib.sha256(b"no graph").hexdigest(),
    }
    stamp.write_text(json.dumps(record))
    np.testing.assert_array_equal(embeddings(opened(engine)), expected)
    assert file.stat().st_size > 8


def test_what_does_not_open_is_made_once_more_and_never_stamped(
    engine: EngineDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = opened(engine)
    prepare, made, bad = prepared.backend.prepare, [], 1  # type: ignore[attr-defined]

    def damage(graph: Path, target: Path) -> None:
        prepare(graph, target)
        made.append(target)
        if len(made) <= bad:
            target.write_bytes(b"no graph")

    monkeypatch.setattr(prepared.backend, "prepare", damage)
    assert np.isfinite(embeddings(prepared)).all() and len(made) == 2
    assert prepared.folder is not None
    (prepared.folder / f"{NAME}.json").unlink()
    made, bad = [], 9
    with pytest.raises(BackendError, match=f"what was prepared of component '{NAME}' does not open: onnxruntime"):
        prepared.prepare([NAME])
    assert len(made) == 2 and not (prepared.folder / f"{NAME}.json").exists()


@pytest.mark.parametrize("kind", in_the_way.KINDS)
def test_what_is_in_the_place_of_a_file_is_replaced(engine: EngineDirectory, kind: str) -> None:
    prepared = opened(engine)
    expected = embeddings(prepared)
    folder = prepared.folder
    assert folder is not None
    # Lock and marker are looked at only if something has to be made.
    for names in ((f"{NAME}.onnx", ".lock", "engine.json"), (f"{NAME}.onnx.data",), (f"{NAME}.json",)):
        for name in names:
            in_the_way.put(kind, folder / name)
        np.testing.assert_array_equal(embeddings(opened(engine)), expected, err_msg=str(names))
        for name in names:
            assert (folder / name).is_file() and not (folder / name).is_symlink(), name


def test_a_source_that_is_no_file_any_more_is_an_error(engine: EngineDirectory, tmp_path: Path) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(engine.path, copy)
    directory = open_directory(copy)
    prepared = opened(directory)
    embeddings(prepared)
    source = copy / f"{NAME}.onnx.data"
    source.unlink()
    with pytest.raises(EngineError, match="is missing"):
        prepared.open(NAME)
    os.mkfifo(source)
    with pytest.raises(EngineError, match="is a pipe instead of a file"):
        prepared.open(NAME)


def test_a_relative_engine_directory_stays_where_it_was(
    shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine").symlink_to(shapes_dir)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("EBCA_CACHE_DIR", "cache")
    monkeypatch.chdir(tmp_path)
    prepared = opened(open_directory("engine"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert np.isfinite(embeddings(prepared)).all()
    assert list((tmp_path / "elsewhere").iterdir()) == [] and (tmp_path / "cache").is_dir()


def test_numbers_that_are_grouped_as_in_a_language_are_put_right(tmp_path: Path) -> None:
    model = tmp_path / "model"
    for written, right in (
        (b"MatMul+123|50,176;1,024;0p", b"MatMul+123|050176;01024;0p"),
        (b"Gemm+1|1.234.567;8;0|2.000;16;0", b"Gemm+1|001234567;8;0|02000;16;0"),
        (b"Gemm+1|1\xa0234;5\n678;0", b"Gemm+1|01234;05678;0"),
        (b"Gemm+1|50176;1024;0", b"Gemm+1|50176;1024;0"),
        # Not what is said of a packed weight.
        (
            b"|1,234;5;0 ||k||^2 1|1,234;x;0 1|1,234;5;x 1|1,,2;3;0",
            b"|1,234;5;0 ||k||^2 1|1,234;x;0 1|1,234;5;x 1|1,,2;3;0",
        ),
    ):
        model.write_bytes(b"\x0a" + written + b"\xff")
        backend_module._ungroup_packed_numbers(model)
        assert model.read_bytes() == b"\x0a" + right + b"\xff"
